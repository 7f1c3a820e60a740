"""Request-time features: local time of New York, whatever zone the request came in and whatever the season."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from features.flight_delay.request import derive

TIME = pl.Datetime("us", "UTC")


def requests(*departures: datetime, minutes: int = 90) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "flight": list(range(len(departures))),
            "scheduled_departure": list(departures),
            "scheduled_arrival": [departure + timedelta(minutes=minutes) for departure in departures],
        },
        schema={"flight": pl.Int64, "scheduled_departure": TIME, "scheduled_arrival": TIME},
    )


@pytest.mark.parametrize(
    ("departure", "hour", "weekday"),
    [
        (datetime(2013, 1, 1, 10, 15, tzinfo=UTC), 5.25, 2),  # winter
        (datetime(2013, 7, 1, 10, 15, tzinfo=UTC), 6.25, 1),  # summer
        (datetime(2013, 3, 10, 6, 59, tzinfo=UTC), 1 + 59 / 60, 7),  # the minute before the clocks go forward
        (datetime(2013, 3, 10, 7, 0, tzinfo=UTC), 3, 7),
        (datetime(2013, 11, 3, 5, 30, tzinfo=UTC), 1.5, 7),  # half past one, twice
        (datetime(2013, 11, 3, 6, 30, tzinfo=UTC), 1.5, 7),
        (datetime(2013, 4, 1, 3, 59, tzinfo=UTC), 23 + 59 / 60, 7),  # Monday in UTC, Sunday in New York
        (datetime(2013, 4, 1, 4, 0, tzinfo=UTC), 0, 1),
    ],
)
def test_hour_and_weekday_are_those_of_new_york(departure: datetime, hour: float, weekday: int) -> None:
    (row,) = derive(requests(departure)).to_dicts()
    assert row["departure_hour"] == pytest.approx(hour)
    assert row["departure_weekday"] == weekday


def test_the_scheduled_time_in_the_air_is_elapsed_time() -> None:
    """From 1:30 before the clocks change to 4:00 after is an hour and a half, not two and a half."""
    row = derive(requests(datetime(2013, 3, 10, 6, 30, tzinfo=UTC), minutes=90)).to_dicts()[0]
    assert row["block_minutes"] == 90


def test_rows_columns_and_order_stay_and_only_numbers_are_added() -> None:
    given = requests(*(datetime(2013, 6, 30 - n, 12, tzinfo=UTC) for n in range(20)))
    derived = derive(given)
    assert derived.select(given.columns).equals(given)
    added = derived.drop(given.columns)
    assert added.columns == ["departure_hour", "departure_weekday", "block_minutes"]
    assert set(added.dtypes) == {pl.Float64}
    assert sum(added.null_count().row(0)) == 0


def test_no_request_is_no_row() -> None:
    assert derive(requests()).schema == derive(requests(datetime(2013, 1, 1, tzinfo=UTC))).schema
