"""A table is judged fresh or not on the data clock, with its age as the reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from throughline.monitoring.freshness import judge_freshness

NOW = datetime(2013, 4, 3, 4, tzinfo=UTC)
LIMIT, TICK = timedelta(hours=36), timedelta(microseconds=1)


def rows(*known: datetime) -> pl.LazyFrame:
    return pl.LazyFrame({"available_at": list(known)}, schema={"available_at": pl.Datetime("us", "UTC")})


def test_the_newest_row_may_be_as_old_as_the_limit_and_no_older() -> None:
    assert judge_freshness(rows(NOW - LIMIT, NOW - 5 * LIMIT), LIMIT, NOW).fresh
    late = judge_freshness(rows(NOW - LIMIT - TICK), LIMIT, NOW)
    assert not late.fresh
    assert "1 day, 12:00:00 are allowed" in late.reason


def test_rows_of_the_future_do_not_make_a_table_fresh() -> None:
    """Schedules are published a week ahead, and a replayed day's deliveries are brought before it is lived through."""
    assert not judge_freshness(rows(NOW - 2 * LIMIT, NOW + TICK), LIMIT, NOW).fresh
    assert judge_freshness(rows(NOW), LIMIT, NOW).fresh


def test_an_empty_table_is_not_fresh() -> None:
    assert not judge_freshness(rows(), LIMIT, NOW).fresh
    assert judge_freshness(rows(NOW + TICK), LIMIT, NOW).newest == "none"
