"""Freshness of a table on the data clock, so that an outage in a replay counts as one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl


@dataclass(frozen=True)
class Freshness:
    fresh: bool
    newest: str
    reason: str


def judge_freshness(rows: pl.LazyFrame, limit: timedelta, now: datetime) -> Freshness:
    """Compare the newest `available_at` known by `now` (UTC) with `limit`. An empty table is not fresh."""
    newest = rows.filter(pl.col("available_at") <= now).select(pl.col("available_at").max()).collect().item()
    return judge_age(newest, limit, now)


def judge_age(newest: datetime | None, limit: timedelta, now: datetime) -> Freshness:
    """Compare the age of the newest row at `now` (UTC) with `limit`; no row at all is not fresh."""
    if newest is None:
        return Freshness(False, "none", "no row yet")
    age = now - newest
    return Freshness(age <= limit, newest.isoformat(), f"newest row is {age} old, {limit} are allowed")
