"""The recorded year as feeds: each known trap of the recording, and every row delivered on exactly one day."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.flight_delay import sources
from features.flight_delay.sources import read
from throughline.usecase import UseCase, get_usecase

END = datetime(2015, 1, 1, tzinfo=UTC)
DAILY = ["flight_schedules", "flight_departures", "flight_arrivals", "weather"]
ACTUAL = ["flight_departures", "flight_arrivals", "weather"]
NEW_YORK = "America/New_York"
MISSING = ["BQN", "PSE", "SJU", "STT"]


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def feeds() -> dict[str, pl.DataFrame]:
    return {table: read(table, None, END) for table in [*DAILY, "planes"]}


@pytest.fixture(scope="module")
def recorded() -> pl.DataFrame:
    """The file as it is, with the key that the feeds have."""
    with zipfile.ZipFile(sources._data("flights.csv.zip")) as archive:
        content = archive.read(archive.namelist()[0])
    flights = pl.read_csv(io.BytesIO(content), null_values=["NA"], infer_schema_length=None)
    return flights.with_columns(
        flight_id=pl.format("{}-{}{}-{}", pl.date("year", "month", "day"), "carrier", "flight", "origin")
    )


def clock_face(instant: str, zone: str) -> pl.Expr:
    """HHMM as a local clock shows it."""
    local = pl.col(instant).dt.convert_time_zone(zone)
    return local.dt.hour().cast(pl.Int64) * 100 + local.dt.minute()


def test_every_recorded_flight_is_in_the_schedule_once(feeds: dict[str, pl.DataFrame]) -> None:
    assert feeds["flight_schedules"].height == 336_776
    assert feeds["weather"].height == 26_115
    assert feeds["planes"].height == 3_322


def test_keys_are_unique_and_never_null(feeds: dict[str, pl.DataFrame], usecase: UseCase) -> None:
    for name, table in usecase.sources.tables.items():
        keys = feeds[name].select(table.key)
        assert not keys.is_duplicated().any(), name
        assert sum(keys.null_count().row(0)) == 0, name


def test_every_row_says_when_it_happened_and_when_it_was_known(feeds: dict[str, pl.DataFrame]) -> None:
    for name, frame in feeds.items():
        for column in ("event_time", "available_at"):
            assert frame.schema[column] == pl.Datetime("us", "UTC"), name
            assert frame[column].null_count() == 0, name


@pytest.mark.parametrize("table", ACTUAL)
def test_what_happened_is_never_known_before_it_happened(feeds: dict[str, pl.DataFrame], table: str) -> None:
    assert (feeds[table]["available_at"] >= feeds[table]["event_time"]).all()


def test_schedules_are_known_a_week_ahead(feeds: dict[str, pl.DataFrame]) -> None:
    ahead = feeds["flight_schedules"]["scheduled_departure"] - feeds["flight_schedules"]["available_at"]
    assert (ahead == timedelta(days=7)).all()


def test_scheduled_departures_are_local_times_of_new_york(
    feeds: dict[str, pl.DataFrame], recorded: pl.DataFrame
) -> None:
    """`time_hour` is UTC: taken for local time, every departure would stand four or five hours off."""
    both = feeds["flight_schedules"].join(recorded.select("flight_id", "sched_dep_time"), on="flight_id")
    assert both.height == 336_776
    assert both.filter(clock_face("scheduled_departure", NEW_YORK) != pl.col("sched_dep_time")).height == 0


def test_actual_departures_agree_with_the_recorded_clock_and_2400_is_midnight(
    feeds: dict[str, pl.DataFrame], recorded: pl.DataFrame
) -> None:
    both = feeds["flight_departures"].join(recorded.select("flight_id", "dep_time"), on="flight_id")
    assert both.height == 328_521
    assert both.filter(clock_face("event_time", NEW_YORK) != pl.col("dep_time") % 2400).height == 0
    assert both.filter(pl.col("dep_time") == 2400).height > 20


def test_actual_arrivals_agree_with_the_clock_at_the_destination(
    feeds: dict[str, pl.DataFrame], recorded: pl.DataFrame
) -> None:
    """Through scheduled arrival, delay and time zone, each arrival lands on the minute that was recorded apart."""
    zones = pl.read_csv(sources._data("airports.csv"), null_values=["NA", "\\N"]).select(dest="faa", zone="tzone")
    both = (
        feeds["flight_arrivals"]
        .join(recorded.select("flight_id", "arr_time"), on="flight_id")
        .join(zones, on="dest", how="left")
        .with_columns(pl.col("zone").fill_null("America/Puerto_Rico"))
    )
    assert both.height == 327_346
    wrong = [
        flight
        for (zone,), part in both.group_by("zone")
        for flight in part.filter(clock_face("event_time", zone) != pl.col("arr_time") % 2400)["flight_id"]
    ]
    # recorded at 2:03 in the night in which New York has no such time
    assert wrong == ["2013-03-09-B635-JFK"]


def test_scheduled_arrivals_follow_departures_within_a_days_flight(feeds: dict[str, pl.DataFrame]) -> None:
    block = feeds["flight_schedules"]["scheduled_arrival"] - feeds["flight_schedules"]["scheduled_departure"]
    assert block.null_count() == 0
    assert block.min() >= timedelta(minutes=30)
    assert block.max() <= timedelta(hours=13)


def test_destinations_that_the_airport_list_lacks_have_a_zone(feeds: dict[str, pl.DataFrame]) -> None:
    airports = pl.read_csv(sources._data("airports.csv"), null_values=["NA", "\\N"])["faa"]
    lacking = feeds["flight_schedules"].filter(~pl.col("dest").is_in(airports.to_list()))
    assert sorted(lacking["dest"].unique()) == MISSING
    block = (lacking["scheduled_arrival"] - lacking["scheduled_departure"]).dt.total_minutes()
    assert block.is_between(180, 300).all()  # New York to Puerto Rico takes four hours, whatever the season


def test_an_arrival_comes_after_its_departure(feeds: dict[str, pl.DataFrame]) -> None:
    both = feeds["flight_arrivals"].join(
        feeds["flight_departures"].select("flight_id", departed="event_time"), on="flight_id", how="left"
    )
    assert both["departed"].null_count() == 0
    assert (both["event_time"] > both["departed"]).all()


def test_a_cancelled_flight_is_published_and_never_departs_or_arrives(
    feeds: dict[str, pl.DataFrame], recorded: pl.DataFrame
) -> None:
    cancelled = recorded.filter(pl.col("dep_time").is_null())["flight_id"]
    diverted = recorded.filter(pl.col("dep_time").is_not_null(), pl.col("arr_delay").is_null())["flight_id"]
    assert (cancelled.len(), diverted.len()) == (8_255, 1_175)
    assert cancelled.is_in(feeds["flight_schedules"]["flight_id"].to_list()).all()
    for table in ("flight_departures", "flight_arrivals"):
        assert not cancelled.is_in(feeds[table]["flight_id"].to_list()).any()
    assert diverted.is_in(feeds["flight_departures"]["flight_id"].to_list()).all()
    assert not diverted.is_in(feeds["flight_arrivals"]["flight_id"].to_list()).any()


def test_a_published_schedule_says_nothing_of_what_happened(feeds: dict[str, pl.DataFrame]) -> None:
    assert not {"dep_delay", "arr_delay", "dep_time", "arr_time", "air_time"} & set(feeds["flight_schedules"].columns)
    assert "arr_delay" not in feeds["flight_departures"].columns


def test_the_doubled_hours_of_november_are_distinct_instants(feeds: dict[str, pl.DataFrame]) -> None:
    night = feeds["weather"].filter(
        pl.col("event_time").is_between(datetime(2013, 11, 3, 4, tzinfo=UTC), datetime(2013, 11, 3, 8, tzinfo=UTC))
    )
    local = night.select("origin", hour=clock_face("event_time", NEW_YORK))
    assert local.filter(local.is_duplicated())["hour"].unique().to_list() == [100]
    assert not night.select("origin", "event_time").is_duplicated().any()


def test_a_wind_of_1048_mph_is_delivered_as_it_was_recorded(feeds: dict[str, pl.DataFrame]) -> None:
    assert feeds["weather"].filter(pl.col("wind_speed") > 250)["wind_speed"].round(2).to_list() == [1048.36]


def test_weather_ends_where_the_recording_ends(feeds: dict[str, pl.DataFrame]) -> None:
    assert feeds["weather"]["event_time"].max() == datetime(2013, 12, 30, 23, tzinfo=UTC)


def test_the_register_was_known_before_the_year_began(feeds: dict[str, pl.DataFrame], usecase: UseCase) -> None:
    assert feeds["planes"]["available_at"].max() < usecase.day_start(usecase.replay.start)
    assert feeds["planes"]["year_built"].drop_nulls().is_between(1950, 2013).all()


@settings(max_examples=8)
@given(
    cuts=st.lists(st.integers(0, 380 * 24 * 60), max_size=6).map(
        lambda minutes: [datetime(2012, 12, 20, tzinfo=UTC) + timedelta(minutes=m) for m in sorted(minutes)]
    ),
    table=st.sampled_from(DAILY),
)
def test_windows_that_touch_deliver_every_row_once(
    feeds: dict[str, pl.DataFrame], cuts: list[datetime], table: str
) -> None:
    edges = [None, *cuts, END]
    parts = [read(table, start, end) for start, end in pairwise(edges)]  # type: ignore[arg-type]
    assert pl.concat(parts).equals(feeds[table])


def test_a_window_has_its_start_and_not_its_end(feeds: dict[str, pl.DataFrame]) -> None:
    at = feeds["weather"]["available_at"][1000]
    tick = timedelta(microseconds=1)
    assert read("weather", at, at + tick).height > 0
    assert read("weather", at + tick, at + timedelta(minutes=59)).height == 0
    assert read("weather", at - timedelta(minutes=59), at).height == 0


@pytest.mark.parametrize("table", [*DAILY, "planes"])
def test_the_order_of_a_delivery_does_not_depend_on_how_it_was_read(
    feeds: dict[str, pl.DataFrame], table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows known at the same instant have an order too: the digest of a day's content depends on it."""
    shuffled = feeds[table].sample(fraction=1.0, shuffle=True, seed=7)
    monkeypatch.setitem(sources._FEEDS, table, lambda: shuffled)
    again = read(table, None, END)
    assert again.equals(feeds[table])
    assert again["available_at"].is_sorted()


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        read("trains", None, END)
