"""The profile of a table: distributions and missing values by column, in total and by day; pure.

Does not own: drawing (`profile_page.py`), verdicts about raw tables (`validation/`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import polars as pl

from throughline.lakehouse.table import DAY

BINS = 40
SHOWN_CATEGORIES = 12
HANDFUL = 5
# The middle 99 % is drawn to scale, so that an outlier does not flatten the rest; the outer bars hold the tails.
TAIL = 0.005


@dataclass(frozen=True)
class Bar:
    """One bar of a distribution: its value or range, and the number of rows."""

    label: str
    rows: int


@dataclass(frozen=True)
class DayFigures:
    """A column on one day: rows, the share without a value, and the 10, 50 and 90 % quantiles of the values.

    For a column of a handful of values (a label, a flag) `middle` is the mean, and low and high are None.
    """

    day: date
    rows: int
    null_share: float
    low: float | None
    middle: float | None
    high: float | None


@dataclass(frozen=True)
class ColumnProfile:
    """A column: of numbers, bars in order, mean, deviation and range; of texts, the most frequent values."""

    name: str
    numeric: bool
    rows: int
    nulls: int
    distinct: int
    bars: list[Bar]
    days: list[DayFigures]
    mean: float | None = None
    deviation: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    @property
    def null_share(self) -> float:
        return self.nulls / self.rows if self.rows else 0.0


def number(value: float | None) -> str:
    """A number as people read it."""
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def profile(rows: pl.DataFrame, leave_out: Collection[str] = ()) -> list[ColumnProfile]:
    """A profile of every column of numbers or texts, in the table's order; `rows` may have their `day`.

    NaN counts as missing. Instants and `leave_out` are left out.
    """
    shown = [
        name
        for name, kind in rows.schema.items()
        if name not in {DAY, *leave_out} and (kind.is_numeric() or kind in (pl.String, pl.Boolean))
    ]
    return [_column(rows, name) for name in shown]


def _column(rows: pl.DataFrame, name: str) -> ColumnProfile:
    numeric = rows.schema[name].is_numeric()
    value = pl.col(name).cast(pl.Float64).fill_nan(None) if numeric else pl.col(name).cast(pl.String)
    values = rows.select(value).to_series()
    known = values.drop_nulls()
    distinct = known.n_unique()
    common: dict[str, Any] = {
        "name": name,
        "numeric": numeric,
        "rows": rows.height,
        "nulls": values.null_count(),
        "distinct": distinct,
        "days": _days(rows, value, _marks(value, numeric, distinct)) if DAY in rows.columns else [],
    }
    if not numeric:
        return ColumnProfile(bars=_categories(known), **common)
    value = pl.col(name)
    figures = known.to_frame().select(
        mean=value.mean(), deviation=value.std(), minimum=value.min(), maximum=value.max()
    )
    return ColumnProfile(bars=_histogram(known), **common, **figures.row(0, named=True))


def _histogram(known: pl.Series) -> list[Bar]:
    """A bar per value where there are few, otherwise at most `BINS` of equal width over the middle of the values."""
    if known.is_empty():
        return []
    if known.n_unique() <= BINS:
        counts = known.value_counts().sort(known.name)
        return [Bar(f"{value:g}", rows) for value, rows in counts.iter_rows()]
    value = pl.col(known.name)
    ends = (value.min(), value.quantile(TAIL, "lower").alias("low"), value.quantile(1 - TAIL, "higher").alias("high"))
    least, low, high, most = known.to_frame().select(*ends, value.max().alias("most")).row(0)
    if low == high:
        low, high = least, most
    width = (high - low) / BINS
    if (known == known.floor()).all():
        width = math.ceil((high - low + 1) / BINS)  # whole numbers: the same number of them in each bar
    bins = math.floor((high - low) / width) + 1 if width * BINS > high - low else BINS
    position = ((known - low) / width).floor().clip(0, bins - 1).cast(pl.Int64)
    counts = dict(position.value_counts().iter_rows())
    edges = [number(low + n * width) for n in range(bins + 1)]
    labels = [f"{start} to {end}" for start, end in pairwise(edges)]
    if least < low:
        labels[0] = f"below {edges[1]}"
    if most > high:
        labels[-1] = f"above {edges[-2]}"
    return [Bar(label, counts.get(n, 0)) for n, label in enumerate(labels)]


def _categories(known: pl.Series) -> list[Bar]:
    counts = known.value_counts().sort(["count", known.name], descending=[True, False])
    return [Bar(value, rows) for value, rows in counts.head(SHOWN_CATEGORIES).iter_rows()]


def _marks(value: pl.Expr, numeric: bool, distinct: int) -> list[pl.Expr]:
    nothing = pl.lit(None, pl.Float64)
    if not numeric:
        return [nothing, nothing, nothing]
    if distinct <= HANDFUL:
        return [nothing, value.mean(), nothing]
    return [value.quantile(q, "nearest") for q in (0.1, 0.5, 0.9)]


def _days(rows: pl.DataFrame, value: pl.Expr, marks: list[pl.Expr]) -> list[DayFigures]:
    figures = rows.group_by(DAY).agg(
        pl.len().alias("rows"),
        (value.null_count() / pl.len()).alias("null_share"),
        *(mark.alias(name) for mark, name in zip(marks, ("low", "middle", "high"), strict=True)),
    )
    return [DayFigures(*row) for row in figures.drop_nulls(DAY).sort(DAY).iter_rows()]
