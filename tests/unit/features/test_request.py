"""Request-time features: local time of New York, whatever zone the request came in and whatever the season."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.flight_delay.request import ZONE, derive
from throughline.featurestore.request_features import add_request_features, request_features
from throughline.usecase import get_usecase
from throughline.usecase.requests import Columns, example_instance, parse_columns, request_frame

USECASE = get_usecase("flight_delay")


def requests(*departures: datetime, minutes: int = 90) -> Columns:
    rows = [
        example_instance(USECASE)
        | {"scheduled_departure": departure, "scheduled_arrival": departure + timedelta(minutes=minutes)}
        for departure in departures
    ]
    return parse_columns(USECASE, rows)


def derived(columns: Columns) -> dict[str, list[float]]:
    return request_features(derive, USECASE, columns)


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
    features = derived(requests(departure))
    assert features["departure_hour"] == [pytest.approx(hour)]
    assert features["departure_weekday"] == [weekday]


def test_the_scheduled_time_in_the_air_is_elapsed_time() -> None:
    """From 1:30 before the clocks change to 4:00 after is an hour and a half, not two and a half."""
    assert derived(requests(datetime(2013, 3, 10, 6, 30, tzinfo=UTC), minutes=90))["block_minutes"] == [90]


def test_only_numbers_are_added_and_rows_and_their_order_stay() -> None:
    rows = request_frame(USECASE, requests(*(datetime(2013, 6, 30 - n, 12, tzinfo=UTC) for n in range(20))))
    added = add_request_features(USECASE, rows)
    assert added.select(rows.columns).equals(rows)
    features = added.drop(rows.columns)
    assert features.columns == ["departure_hour", "departure_weekday", "block_minutes"]
    assert set(features.dtypes) == {pl.Float64}
    assert sum(features.null_count().row(0)) == 0
    assert add_request_features(USECASE, rows.head(0)).schema == added.schema


@given(
    st.lists(
        st.tuples(
            st.datetimes(datetime(1901, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)),
            st.timedeltas(timedelta(days=-9), timedelta(days=9)),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_one_request_and_a_table_of_them_get_the_same_features(flights: list[tuple[datetime, timedelta]]) -> None:
    rows = [
        example_instance(USECASE) | {"scheduled_departure": departure, "scheduled_arrival": departure + lasts}
        for departure, lasts in flights
    ]
    table = add_request_features(USECASE, request_frame(USECASE, parse_columns(USECASE, rows)))
    single = [derived(parse_columns(USECASE, [row])) for row in rows]
    for name in single[0]:
        assert [one[name][0] for one in single] == table[name].to_list()
    local = table["scheduled_departure"].dt.convert_time_zone(ZONE)
    assert table["departure_weekday"].to_list() == local.dt.weekday().to_list()
    assert table["departure_hour"].to_list() == pytest.approx((local.dt.hour() + local.dt.minute() / 60).to_list())
