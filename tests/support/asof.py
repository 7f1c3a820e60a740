"""The as-of join of a whole spine in one call; the product joins batch by batch (`featurestore/asof.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from throughline.featurestore.asof import View, join_batches


def join_many(spine: pl.DataFrame, views: Sequence[View], *, spine_time: str) -> pl.DataFrame:
    """The spine with the columns of the feature rows it may use, read over the spine's own span of time."""
    span: Any = (spine[spine_time].min(), spine[spine_time].max())
    (joined,) = join_batches([spine], views, spine_time=spine_time, span=span)
    return joined


def join_asof(spine: pl.DataFrame, rows: pl.LazyFrame, *, spine_time: str, **view: Any) -> pl.DataFrame:
    """`join_many` with one view, given by the fields of `View`."""
    return join_many(spine, [View(rows=rows, **view)], spine_time=spine_time)
