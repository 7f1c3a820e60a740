"""Made rows for the benchmarks that train. Owns: what is in them, and that it can be learned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

NUMERIC = [f"x{number}" for number in range(20)]
CATEGORICAL = [f"c{number}" for number in range(4)]
START = datetime(2024, 1, 1, tzinfo=UTC)


def made_rows(count: int) -> pl.DataFrame:
    """One row a minute, its label known at once; the chance of the label depends on two numbers and a category."""
    draw = np.random.default_rng(1)
    numbers, codes = draw.normal(size=(count, len(NUMERIC))), draw.integers(0, 30, (count, len(CATEGORICAL)))
    chance = 1 / (1 + np.exp(1 - numbers[:, 0] - numbers[:, 1] * (codes[:, 0] > 15)))
    times = pl.datetime_range(START, START + timedelta(minutes=count - 1), "1m", eager=True)
    return pl.DataFrame(
        {
            "row_key": [f"{number:08d}" for number in range(count)],
            "prediction_time": times,
            "label_available_at": times,
            "label": (draw.random(count) < chance).astype(np.int64),
            **dict(zip(NUMERIC, numbers.T, strict=True)),
            **{name: pl.Series(column).cast(pl.String) for name, column in zip(CATEGORICAL, codes.T, strict=True)},
        }
    )
