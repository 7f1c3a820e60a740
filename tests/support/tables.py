"""Rows of a table partitioned by day, for tests of writes and reads."""

from __future__ import annotations

from datetime import date

import polars as pl


def rows(days: list[date], value: int = 0, per_day: int = 2) -> pl.DataFrame:
    """`per_day` rows for each day, with ids from 0 and the same value."""
    ids = pl.DataFrame({"id": range(per_day)}, schema={"id": pl.Int64})
    each = pl.DataFrame({"day": days}, schema={"day": pl.Date}).join(ids, how="cross")
    return each.with_columns(value=pl.lit(value, pl.Int64))
