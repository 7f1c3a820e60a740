"""The known traps of the recording, held to what the declaration expects of each table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.flight_delay import sources
from features.flight_delay.definitions import build
from tests.support.asof import join_asof
from tests.support.request_columns import columns_of
from throughline.featurestore.dataset import labelled_rows
from throughline.featurestore.online import FeatureReader
from throughline.featurestore.request_features import add_request_features
from throughline.foundation.settings import Settings
from throughline.ingestion.ingest import read_days
from throughline.usecase import UseCase, get_usecase
from throughline.validation.judge import REASONS, Judgement, judge

NEW_YORK = "America/New_York"
FIRST, LAST = date(2013, 1, 1), date(2013, 12, 31)
SETTINGS = Settings(home=Path("nowhere"))  # the recording is read, and nothing of a home

Judge = Callable[..., Judgement]


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def judged(usecase: UseCase) -> Judge:
    """Days of a table as the recording has them, judged by the declaration; `change` is what a test does to them."""

    def judged(table: str, first: date, last: date | None = None, change: Any = None, **declared: Any) -> Judgement:
        last = last or first
        rows = read_days(SETTINGS, usecase, table, first, last, FIRST)
        held_to = usecase.sources.tables[table].model_copy(update=declared)
        days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
        return judge(change(rows) if change else rows, held_to, days, first=FIRST)

    return judged


@pytest.mark.parametrize("table", ["flight_schedules", "flight_departures", "flight_arrivals", "weather"])
def test_the_whole_year_comes_in_but_for_one_observation(judged: Judge, table: str) -> None:
    year = judged(table, FIRST, LAST)
    assert all(day.accepted for day in year.days.values())
    assert year.quarantined.height == (1 if table == "weather" else 0)


def test_the_doubled_hours_of_3_november_are_different_rows_because_the_key_is_in_utc(judged: Judge) -> None:
    night = date(2013, 11, 3)
    by_instant = judged("weather", night)
    assert by_instant.days[night].accepted
    assert by_instant.quarantined.height == 0

    def by_the_clock(rows: pl.DataFrame) -> pl.DataFrame:
        local = pl.col("event_time").dt.convert_time_zone(NEW_YORK).dt.replace_time_zone(None)
        return rows.with_columns(event_time=local.dt.replace_time_zone("UTC"))

    local_hours = judged("weather", night, change=by_the_clock)
    assert "unique_key: 3 of 72 rows repeat origin, event_time" in local_hours.days[night].reason


def test_a_wind_of_1048_mph_never_gets_into_the_table_and_nothing_else_is_lost(judged: Judge) -> None:
    day = date(2013, 2, 12)
    found = judged("weather", day)
    assert found.days[day].accepted
    (row,) = found.quarantined.to_dicts()
    assert (row["origin"], round(row["wind_speed"]), row[REASONS]) == ("EWR", 1048, ["wind_speed: above 250"])
    assert found.good.height == 71
    assert found.good["wind_speed"].max() < 60


def test_flights_that_arrived_at_2400_arrive_at_the_midnight_that_ends_the_day(judged: Judge) -> None:
    recorded = sources._flights().filter(pl.col("arr_time") == 2400, pl.col("arr_delay").is_not_null())
    assert recorded.height > 100
    arrived = judged("flight_arrivals", FIRST, LAST).good.join(
        recorded.select("flight_id", "date", "zone"), on="flight_id"
    )
    assert arrived.height == recorded.height
    for (zone,), part in arrived.partition_by("zone", as_dict=True).items():
        local = part["event_time"].dt.convert_time_zone(zone)
        assert (local.dt.hour() == 0).all()
        assert (local.dt.minute() == 0).all()
        # a flight that left before the midnight that ends its day, or, late, before the next
        assert ((local.dt.date() - part["date"]).dt.total_days().is_in([1, 2])).all()


def test_destinations_that_the_airport_list_lacks_are_good_rows(judged: Judge) -> None:
    year = judged("flight_schedules", FIRST, LAST).good
    assert year.filter(pl.col("dest").is_in(["BQN", "PSE", "SJU", "STT"])).height == 896 + 365 + 5819 + 522


def test_weather_ends_on_30_december_and_the_silence_is_told_but_stops_nothing(judged: Judge) -> None:
    end = judged("weather", date(2013, 12, 30), LAST)
    assert end.days[date(2013, 12, 30)].rows == 57
    assert end.good["event_time"].max() == datetime(2013, 12, 30, 23, tzinfo=UTC)
    volume = {verdict.aspect: verdict.result for verdict in end.days[LAST].verdicts}["volume"]
    assert (end.days[LAST].rows, volume, end.days[LAST].accepted) == (0, "warn", True)


def test_the_last_week_without_schedules_stops_nothing(judged: Judge) -> None:
    """Schedules are published a week ahead, and none of 2014 are in the recording."""
    assert all(day.accepted for day in judged("flight_schedules", date(2013, 12, 24), LAST).days.values())


# A null tailnum means that the flight was cancelled: known ahead of time, it would be a leak.


def test_a_null_tailnum_says_nothing_about_any_label(usecase: UseCase) -> None:
    """Only cancelled flights lack one, and these never get a label: it is the same for all labelled rows."""
    schedules = read_days(SETTINGS, usecase, "flight_schedules", FIRST, LAST, FIRST)
    arrivals = read_days(SETTINGS, usecase, "flight_arrivals", FIRST, LAST, FIRST)
    departures = read_days(SETTINGS, usecase, "flight_departures", FIRST, LAST, FIRST)
    nobody = schedules.filter(pl.col("tailnum").is_null())["flight_id"]
    assert nobody.len() == 2512
    assert not departures["flight_id"].is_in(nobody.to_list()).any()
    spine = schedules.join(arrivals.select("flight_id", "arr_delay", known="available_at"), on="flight_id", how="left")
    spine = spine.select(
        *usecase.request,
        prediction_time=pl.col("scheduled_departure") - usecase.prediction.lead,
        label=(pl.col("arr_delay") > 15).cast(pl.Int8),
        label_available_at="known",
        available_at=pl.coalesce("known", "available_at"),
    )
    trained = labelled_rows(usecase, spine.lazy(), datetime(2014, 1, 2, tzinfo=UTC))
    assert trained.height > 327_000
    assert trained["tailnum"].null_count() == 0


@pytest.mark.parametrize("table", ["flight_departures", "flight_arrivals"])
def test_a_flight_that_flew_without_a_tailnum_is_a_bad_row(judged: Judge, table: str) -> None:
    """Let in, it would be the first row in which a null goes with a label."""

    def without(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(tailnum=pl.when(pl.int_range(pl.len()) == 7).then(None).otherwise("tailnum"))

    found = judged(table, date(2013, 3, 1), change=without)
    assert found.quarantined[REASONS].to_list() == [["tailnum: missing"]]


def test_the_model_is_not_shown_the_tailnum(usecase: UseCase) -> None:
    assert "tailnum" not in usecase.features.categories
    assert usecase.request["tailnum"].nullable


def requests_of(tailnums: list[str | None]) -> pl.DataFrame:
    """Requests that differ in nothing but the aircraft."""
    departure = datetime(2013, 4, 1, 13, tzinfo=UTC)
    same = {"origin": "JFK", "carrier": "B6", "dest": "BOS", "flight": 1018}
    times = {"scheduled_departure": departure, "scheduled_arrival": departure + timedelta(hours=1)}
    schema = {"tailnum": pl.String, "scheduled_departure": _TIME, "scheduled_arrival": _TIME}
    return pl.DataFrame([{**same, "tailnum": one, **times} for one in tailnums], schema_overrides=schema)


_TIME = pl.Datetime("us", "UTC")


def test_in_training_rows_no_aircraft_and_an_unknown_one_look_the_same(usecase: UseCase) -> None:
    ticks = pl.DataFrame(
        {
            "tailnum": ["N1", None],
            "event_timestamp": [datetime(2013, 4, 1, tzinfo=UTC)] * 2,
            "aircraft_delay_12h": [33.0, 99.0],
        },
        schema_overrides={"event_timestamp": _TIME},
    )
    rows = join_asof(
        add_request_features(usecase, requests_of(["N1", None, "N0"])),
        ticks.lazy(),
        keys=["tailnum"],
        spine_time="scheduled_departure",
        row_time="event_timestamp",
        columns={"aircraft_delay_12h": "aircraft_delay_12h"},
    ).drop("tailnum")
    assert rows["aircraft_delay_12h"].to_list() == [33.0, None, None]
    assert rows[1].equals(rows[2])


def test_in_served_features_no_aircraft_and_an_unknown_one_look_the_same(tmp_path: Any, usecase: UseCase) -> None:
    import pandas as pd
    from feast import FeatureView

    from throughline.featurestore import store
    from throughline.lakehouse.table import pin, replace_all

    settings = Settings(home=tmp_path)
    tables = [view.name for view in build(_no_source) if isinstance(view, FeatureView)]
    for table in tables:
        empty = pl.DataFrame({"event_timestamp": [datetime(2013, 1, 1, tzinfo=UTC)]})
        replace_all(settings.table_path(usecase.name, "features", table), empty)
    store.register(settings, usecase, [pin(settings, f"{usecase.name}/features/{table}") for table in tables])
    names = [
        feature.name for feature in store.open_store(settings, usecase).get_feature_view("aircraft_ticks").features
    ]
    known = {"tailnum": ["N1"], "event_timestamp": [pd.Timestamp("2013-04-01", tz="UTC")]}
    frame = pd.DataFrame({**known, **{name: [33.0] for name in names}})
    store.open_store(settings, usecase).write_to_online_store("aircraft_ticks", frame)

    read = FeatureReader(settings, usecase).read(columns_of(requests_of(["N1", None, "N0"])))
    rows = read.frame.drop("tailnum")
    assert rows["aircraft_delay_12h"].to_list() == [33.0, None, None]
    assert rows[1].equals(rows[2])
    assert ["unknown_entity:aircraft" in read.flags(n) for n in range(3)] == [False, True, True]


def _no_source(table: str) -> Any:
    from throughline.featurestore.delta_store import DeltaSource

    return DeltaSource(name=table, path="", version=0, timestamp_field="event_timestamp")
