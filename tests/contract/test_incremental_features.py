"""The dbt models on real Spark: however the days come, the features are those of one build; identity follows content.

One Spark server, two homes after each other: tables are known to the catalog by name, so the second takes them over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support import s3_server
from throughline import services
from throughline.featurestore import dbt
from throughline.featurestore.incremental import Build, dbt_variables, plan_builds
from throughline.foundation.fingerprint import fingerprint_frame
from throughline.foundation.settings import Settings, load_settings
from throughline.ingestion.ingest import ingest_days, ingest_static
from throughline.lakehouse import spark
from throughline.lakehouse.table import RUN_ID, pin, read, replace_days
from throughline.services.ports import take_ports
from throughline.usecase import UseCase, get_usecase

pytestmark = pytest.mark.timeout(1500)  # against hangs: two of these builds side by side take minutes

# nine days around the night in which the clocks go forward
FIRST, LAST = date(2013, 3, 5), date(2013, 3, 13)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MODELS = (
    *("aircraft_ticks", "carrier_ticks", "destination_ticks", "flight_ticks", "labelled_flights", "origin_ticks"),
    *("route_ticks", "station_ticks", "weather_ticks"),
)
Features = Callable[..., dict[str, Build]]


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def new_home(spark_server: Settings, name: str) -> Settings:
    """Another home on the same server, whose catalog forgets the one before."""
    with spark.session(spark_server) as session:
        for layer in ("raw", "features"):
            session.sql(f"DROP SCHEMA IF EXISTS flight_delay_{layer} CASCADE")
    return load_settings(home=spark_server.home / name, data_from=FIRST, spark_remote=spark_server.spark_url)


def bring(settings: Settings, usecase: UseCase, first: date, last: date) -> None:
    for name, table in usecase.sources.tables.items():
        if table.static:
            ingest_static(settings, usecase, name, "test")
        else:
            ingest_days(settings, usecase, name, first, last, "test", usecase.day_start(last + DAY))


def build(
    settings: Settings, usecase: UseCase, as_of: datetime, project: Path = dbt.PROJECT, **more: Any
) -> dict[str, Build]:
    """As the asset does it: plan from what the tables say, then dbt."""
    spark.register_tables(settings, usecase.name, "raw", usecase.sources.tables)
    pins = {name: pin(settings, f"{usecase.name}/raw/{name}").version for name in usecase.sources.tables}
    builds = plan_builds(settings, usecase, dbt.manifest(settings, project), pins, as_of, **more)
    variables = dbt_variables(settings, usecase, pins, builds)
    done = dbt.invoke("run", variables=variables, target=settings.home / "target", project=project)
    assert done.returncode == 0, done.stdout[-3000:]
    return builds


def fingerprints(settings: Settings, usecase: UseCase) -> dict[str, str]:
    """Of all raw and feature tables."""
    tables = [f"raw/{name}" for name in usecase.sources.tables] + [f"features/{name}" for name in MODELS]
    contents = {table: read(settings, pin(settings, f"{usecase.name}/{table}")).collect() for table in tables}
    return {table: fingerprint_frame(content, [], exclude=[RUN_ID]) for table, content in contents.items()}


def ranges(builds: dict[str, Build]) -> dict[str, list[tuple[date, date]]]:
    assert not any(build.whole for build in builds.values())
    return {name: build.ranges for name, build in builds.items() if build.ranges}


@pytest.fixture(scope="module")
def one_batch(spark_server: Settings, usecase: UseCase) -> dict[str, str]:
    """Identities after all days came and were built at once."""
    settings = new_home(spark_server, "batch")
    bring(settings, usecase, FIRST, LAST)
    builds = build(settings, usecase, usecase.day_start(LAST + DAY))
    assert all(one.whole for one in builds.values())
    return fingerprints(settings, usecase)


@pytest.fixture(scope="module")
def in_pieces(spark_server: Settings, usecase: UseCase, one_batch: dict[str, str]) -> Settings:
    """The same days in another home: some at once, one by the hour, one out of order, one of them late."""
    settings = new_home(spark_server, "pieces")
    late, hourly = date(2013, 3, 8), date(2013, 3, 12)
    # the days before, without the one that comes late
    bring(settings, usecase, FIRST, late - DAY)
    bring(settings, usecase, late + DAY, hourly - DAY)
    build(settings, usecase, usecase.day_start(hourly))
    bring(settings, usecase, hourly, hourly)
    for hours in (7, 16):
        builds = build(settings, usecase, usecase.day_start(hourly) + hours * HOUR)
        assert all(built == [(hourly, hourly)] for built in ranges(builds).values())
    bring(settings, usecase, LAST, LAST)
    builds = build(settings, usecase, usecase.day_start(LAST + DAY), requested=[LAST])
    assert ranges(builds)["origin_ticks"] == [(hourly, LAST)]
    bring(settings, usecase, late, late)
    builds = build(settings, usecase, usecase.day_start(LAST + DAY))
    # an arrival is seen on its route for 24 hours, weather for 12, all else for 168 or more: past the last day
    assert ranges(builds) == {
        "origin_ticks": [(late, LAST)],
        "carrier_ticks": [(late, LAST)],
        "station_ticks": [(late, LAST)],
        "destination_ticks": [(late, LAST)],
        "route_ticks": [(late, late + DAY)],
        "flight_ticks": [(late, LAST)],
        "aircraft_ticks": [(late, LAST)],
        "labelled_flights": [(late, late)],
        "weather_ticks": [(late, late + DAY)],
    }
    return settings


def test_batch_day_by_day_by_the_hour_and_out_of_order_give_the_same(
    one_batch: dict[str, str], in_pieces: Settings, usecase: UseCase
) -> None:
    assert fingerprints(in_pieces, usecase) == one_batch


def held(settings: Settings, usecase: UseCase, table: str) -> pl.DataFrame:
    return read(settings, pin(settings, f"{usecase.name}/{table}")).collect()


def test_what_is_overdue_or_due_at_a_tick_is_what_was_known_by_then(in_pieces: Settings, usecase: UseCase) -> None:
    """Against brute force: at each tick, only the schedules published and the departures that had happened."""
    ticks = held(in_pieces, usecase, "features/origin_ticks").sort("origin", "event_timestamp")
    planned = held(in_pieces, usecase, "raw/flight_schedules").select("flight_id", "origin", "scheduled_departure")
    left = held(in_pieces, usecase, "raw/flight_departures").select("flight_id", "available_at", "dep_delay")
    flights = planned.join(left, on="flight_id", how="left")
    assert ticks.height > 500
    for tick in ticks.gather_every(7).to_dicts():
        at = tick["event_timestamp"]
        gone = (pl.col("available_at") < at).fill_null(False)
        so_far = pl.when(gone).then("dep_delay").otherwise((at - pl.col("scheduled_departure")).dt.total_minutes())
        here = flights.with_columns(gone=gone, so_far=so_far).filter(origin=tick["origin"])
        scheduled = pl.col("scheduled_departure")
        overdue = here.filter(scheduled >= at - 5 * HOUR, scheduled < at, ~pl.col("gone"))
        due = here.filter(scheduled >= at, scheduled < at + 3 * HOUR)
        newest = here.filter(scheduled >= at - 2 * HOUR, scheduled < at)
        assert (tick["origin_overdue_5h"], tick["origin_scheduled_3h"]) == (overdue.height, due.height), tick
        assert tick["origin_so_far_2h"] == pytest.approx(newest["so_far"].mean()), tick
        share = (~newest["gone"]).mean()
        assert tick["origin_overdue_share_2h"] == pytest.approx(share), tick


def test_the_spare_time_of_an_aircraft_is_that_of_its_newest_departure(in_pieces: Settings, usecase: UseCase) -> None:
    ticks = held(in_pieces, usecase, "features/aircraft_ticks").filter(pl.col("aircraft_departures_168h") > 0)
    planned = held(in_pieces, usecase, "raw/flight_schedules").drop_nulls("tailnum")
    left = held(in_pieces, usecase, "raw/flight_departures")
    told = 0
    for tick in ticks.sort("tailnum", "event_timestamp").gather_every(40).to_dicts():
        mine = pl.col("tailnum") == tick["tailnum"]
        last = left.filter(mine, pl.col("available_at") < tick["event_timestamp"]).sort("available_at").to_dicts()[-1]
        after = last["scheduled_departure"]
        later = planned.filter(mine, pl.col("scheduled_departure") > after)["scheduled_departure"].min()
        if later is None or later - 7 * DAY >= last["available_at"]:
            assert tick["aircraft_spare_minutes"] is None
            continue
        back = last["scheduled_arrival"] + (last["scheduled_arrival"] - after) + timedelta(minutes=last["dep_delay"])
        spare = min(1440, (later - back) / timedelta(minutes=1))
        assert tick["aircraft_spare_minutes"] == pytest.approx(spare), tick
        told += 1
    assert told > 50


def test_in_a_bucket_they_are_the_same(
    one_batch: dict[str, str],
    usecase: UseCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_server.serve(s3_server.needed(), tmp_path / "buckets", ["lake"]) as address:
        for name, value in s3_server.environment(address).items():
            monkeypatch.setenv(name, value)
        settings = load_settings(
            home=tmp_path / "home", lakehouse_uri="s3://lake/x", data_from=FIRST,
            port_base=take_ports(), spark_memory="1g",
        )  # fmt: skip
        try:
            services.up(settings, ["spark"])
            bring(settings, usecase, FIRST, LAST - DAY)
            build(settings, usecase, usecase.day_start(LAST))
            bring(settings, usecase, LAST, LAST)
            builds = build(settings, usecase, usecase.day_start(LAST + DAY))
            assert ranges(builds)["origin_ticks"] == [(LAST, LAST)]
            assert fingerprints(settings, usecase) == one_batch
        finally:
            services.down(settings)


def test_the_same_rows_brought_again_build_nothing(in_pieces: Settings, usecase: UseCase) -> None:
    before = fingerprints(in_pieces, usecase)
    versions = {name: pin(in_pieces, f"{usecase.name}/raw/{name}").version for name in usecase.sources.tables}
    bring(in_pieces, usecase, FIRST + DAY, LAST)
    assert versions != {name: pin(in_pieces, f"{usecase.name}/raw/{name}").version for name in usecase.sources.tables}
    assert ranges(build(in_pieces, usecase, usecase.day_start(LAST + DAY))) == {}
    assert fingerprints(in_pieces, usecase) == before


def test_one_changed_value_changes_what_follows_from_it_and_nothing_else(in_pieces: Settings, usecase: UseCase) -> None:
    before = fingerprints(in_pieces, usecase)
    path = in_pieces.table_path(usecase.name, "raw", "flight_arrivals")
    day = date(2013, 3, 11)
    rows = read(in_pieces, pin(in_pieces, f"{usecase.name}/raw/flight_arrivals")).filter(pl.col("day") == day).collect()
    first = pl.int_range(pl.len()) == 0
    replace_days(path, rows.with_columns(arr_delay=pl.when(first).then(500.0).otherwise("arr_delay")), day, day)
    builds = build(in_pieces, usecase, usecase.day_start(LAST + DAY))
    assert ranges(builds) == {
        "destination_ticks": [(day, LAST)],
        "route_ticks": [(day, day + DAY)],
        "flight_ticks": [(day, LAST)],
        "station_ticks": [(day, LAST)],
        "labelled_flights": [(day, day)],
    }
    after = fingerprints(in_pieces, usecase)
    assert {table for table in before if before[table] != after[table]} == {
        "raw/flight_arrivals",
        "features/destination_ticks",
        "features/flight_ticks",
        "features/labelled_flights",
        "features/route_ticks",
        "features/station_ticks",
    }


def test_one_changed_line_changes_its_own_table_and_no_other(
    in_pieces: Settings, usecase: UseCase, tmp_path: Path
) -> None:
    before = fingerprints(in_pieces, usecase)
    project = tmp_path / "features"
    shutil.copytree(dbt.PROJECT, project)
    model = project / "models/flight_delay/carrier_ticks.sql"
    sql = model.read_text()
    assert sql.count("if(dep_delay > 15, 1, 0)") == 1
    model.write_text(sql.replace("if(dep_delay > 15, 1, 0)", "if(dep_delay > 20, 1, 0)"))
    builds = build(in_pieces, usecase, usecase.day_start(LAST + DAY), project)
    assert {name for name, one in builds.items() if one.ranges} == {"carrier_ticks"}
    assert builds["carrier_ticks"].whole
    after = fingerprints(in_pieces, usecase)
    assert {table for table in before if before[table] != after[table]} == {"features/carrier_ticks"}
