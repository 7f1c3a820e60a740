"""Rows of a table partitioned by day, for tests of writes and reads."""

from __future__ import annotations

from datetime import date

import polars as pl


def rows(days: list[date], value: int = 0, per_day: int = 2) -> pl.DataFrame:
    """`per_day` rows for each day, with ids from 0 and the same value."""
    return pl.DataFrame(
        [{"day": day, "id": n, "value": value} for day in days for n in range(per_day)],
        schema={"day": pl.Date, "id": pl.Int64, "value": pl.Int64},
    )
