"""A small dataset to train on, in the format of `DatasetRecord`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from throughline.featurestore.dataset import dataset_fingerprint
from throughline.foundation.references import TableReference
from throughline.records import DatasetRecord

START = datetime(2013, 1, 1, tzinfo=UTC)
DAYS, HELD_OUT = 60, 14
HOLDOUT = START + timedelta(days=DAYS - HELD_OUT)
NUMERIC, CATEGORICAL = ["wind", "queue", "gap"], ["origin", "carrier"]


def write_dataset(folder: Path, rows: int = 6000) -> DatasetRecord:
    """A table in the format of `DatasetRecord`, with gaps, an interaction to learn, rows in no order."""
    draw = np.random.default_rng(7)
    wind, queue = draw.normal(10, 3, rows), draw.normal(0, 1, rows)
    carrier = draw.integers(0, 8, rows)
    chance = 1 / (1 + np.exp(1.6 - 1.2 * queue - 0.2 * (wind - 10) * (carrier > 3)))
    seconds = draw.integers(0, DAYS * 86400, rows)
    frame = pl.DataFrame(
        {
            "row_key": [f"row-{number:05d}" for number in range(rows)],
            "prediction_time": [START + timedelta(seconds=int(second)) for second in seconds],
            "label_available_at": [START + timedelta(seconds=int(second), hours=6) for second in seconds],
            "label": (draw.random(rows) < chance).astype(np.int64),
            "wind": wind,
            "queue": queue,
            "gap": [None if missing else 1.0 for missing in draw.random(rows) < 0.7],
            "origin": [None if draw.random() < 0.01 else f"o{number}" for number in draw.integers(0, 3, rows)],
            "carrier": [f"c{number}" for number in carrier],
        }
    )
    path = folder / "dataset"
    frame.write_delta(str(path), mode="error")
    return DatasetRecord(
        usecase="flight_delay",
        table=TableReference("flight_delay/training/dataset", 0),
        path=str(path),
        fingerprint=dataset_fingerprint(frame.lazy(), NUMERIC, CATEGORICAL, HOLDOUT, ""),
        as_of=START + timedelta(days=DAYS),
        rows=rows,
        numeric=NUMERIC,
        categorical=CATEGORICAL,
        inputs=[],
        holdout_from=HOLDOUT,
    )
