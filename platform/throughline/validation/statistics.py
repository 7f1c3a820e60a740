"""Statistics of each day and column of a raw table, as kept in `USECASE/statistics/TABLE`; pure.

Owns: which figures, and their schema. Does not own: verdicts on them (`drift.py`). They describe accepted rows only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import polars as pl

from throughline.lakehouse.table import DAY

# Quantiles in steps of a twentieth: enough to compare distributions.
PROBABILITIES = [step / 20 for step in range(21)]
CATEGORIES = 50

SCHEMA = pl.Schema(
    {
        DAY: pl.Date,
        "column": pl.String,
        "rows": pl.Int64,
        "count": pl.Int64,
        "nulls": pl.Int64,
        "mean": pl.Float64,
        "deviation": pl.Float64,
        "minimum": pl.Float64,
        "maximum": pl.Float64,
        "quantiles": pl.List(pl.Float64),
        "distinct": pl.Int64,
        "categories": pl.List(pl.Struct({"value": pl.String, "count": pl.Int64})),
    }
)


def day_statistics(rows: pl.DataFrame, days: Sequence[date]) -> pl.DataFrame:
    """One row of `SCHEMA` per day of `days` and column of `rows`, which have their `day`.

    Numbers: `count` without nulls and NaN, mean, sample deviation, minimum, maximum and the values at `PROBABILITIES`.
    Texts and booleans: how many distinct ones, and the `CATEGORIES` most frequent with their counts. Instants: counts.
    """
    each = pl.DataFrame({DAY: days}, schema={DAY: pl.Date})
    counts = rows.group_by(DAY).agg(pl.len().cast(pl.Int64).alias("rows"))
    per_column = [
        each.join(counts, on=DAY, how="left")
        .join(_column(rows, name, kind), on=DAY, how="left")
        .with_columns(pl.lit(name).alias("column"))
        for name, kind in rows.schema.items()
        if name != DAY
    ]
    whole = pl.concat([SCHEMA.to_frame(), *per_column], how="diagonal_relaxed")
    return whole.cast(dict(SCHEMA)).with_columns(pl.col("rows", "count", "nulls").fill_null(0)).sort(DAY, "column")


def _column(rows: pl.DataFrame, name: str, kind: pl.DataType) -> pl.DataFrame:
    value, texts = pl.col(name), kind in (pl.String, pl.Boolean)
    if kind.is_numeric():
        value = value.cast(pl.Float64).fill_nan(None)
        figures = [
            value.mean().alias("mean"),
            value.std().alias("deviation"),
            value.min().alias("minimum"),
            value.max().alias("maximum"),
            pl.when(value.count() > 0)
            .then(pl.concat_list(value.quantile(p, "nearest") for p in PROBABILITIES))
            .alias("quantiles"),
        ]
    else:
        value = value.cast(pl.String) if texts else value
        figures = [value.drop_nulls().n_unique().alias("distinct")] if texts else []
    described = rows.group_by(DAY).agg(value.count().alias("count"), value.null_count().alias("nulls"), *figures)
    if not texts:
        return described
    counted = (
        rows.lazy()
        .select(DAY, value.alias("value"))
        .drop_nulls()
        .group_by(DAY, "value")
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .sort("count", "value", descending=[True, False])
        .group_by(DAY, maintain_order=True)
        .agg(pl.struct("value", "count").head(CATEGORIES).alias("categories"))
    )
    return described.join(counted.collect(), on=DAY, how="left")
