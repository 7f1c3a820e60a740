"""The dbt models on real Spark: however days are delivered, the features are those of one build.

One Spark server; homes one after another, because its catalog knows tables by name. A dbt build costs 15 to 35 s, so
tests share them: `one_batch` builds on a local disk, `in_pieces` in a bucket, and plans are asserted without a build
where the content is asserted after a later one. The drill builds at every step.
"""

from __future__ import annotations

import shutil
from datetime import date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from tests.support import s3_server
from throughline.featurestore import dbt
from throughline.featurestore.incremental import Build, dbt_variables, plan_builds
from throughline.foundation.settings import Settings, load_settings
from throughline.ingestion.ingest import ingest_days, ingest_static
from throughline.lakehouse import spark
from throughline.lakehouse.content import fingerprint_frame
from throughline.lakehouse.table import RUN_ID, pin, read, replace_days
from throughline.usecase import UseCase, get_usecase

pytestmark = pytest.mark.timeout(1500)  # against hangs: two of these builds side by side take minutes

# nine days around the night in which the clocks go forward
FIRST, LAST = date(2013, 3, 5), date(2013, 3, 13)
LATE, HOURLY = date(2013, 3, 8), date(2013, 3, 12)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MODELS = (
    *("aircraft_ticks", "carrier_ticks", "destination_ticks", "flight_ticks", "labelled_flights", "origin_ticks"),
    *("route_ticks", "station_ticks", "weather_ticks"),
)
Ranges = dict[str, list[tuple[date, date]]]


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


class Home:
    """A home on the shared server, whose catalog is emptied of the previous home."""

    def __init__(self, server: Settings, usecase: UseCase, name: str, lakehouse: str | None = None) -> None:
        self.usecase = usecase
        self.settings = load_settings(
            home=server.home / name, data_from=FIRST, spark_remote=server.spark_url, lakehouse_uri=lakehouse
        )
        with spark.session(self.settings.spark_url) as session:
            for layer in ("raw", "features"):
                session.sql(f"DROP SCHEMA IF EXISTS flight_delay_{layer} CASCADE")

    def at(self, day: date, hours: int = 0) -> datetime:
        return self.usecase.day_start(day) + hours * HOUR

    def ingest(self, first: date, last: date) -> None:
        for name, table in self.usecase.sources.tables.items():
            if table.static:
                ingest_static(self.settings, self.usecase, name, "test")
            else:
                ingest_days(self.settings, self.usecase, name, first, last, "test", self.at(last + DAY))

    def plan(self, as_of: datetime, project: Path = dbt.PROJECT, requested: tuple[date, ...] = ()) -> dict[str, Build]:
        manifest = dbt.manifest(self.settings, project)
        return plan_builds(self.settings, self.usecase, manifest, self.pins, as_of, requested)

    def build(self, as_of: datetime, project: Path = dbt.PROJECT, requested: tuple[date, ...] = ()) -> dict[str, Build]:
        """Plan and run dbt, as the asset does."""
        spark.register_tables(self.settings, self.usecase.name, "raw", self.usecase.sources.tables)
        builds = self.plan(as_of, project, requested)
        variables = dbt_variables(self.settings, self.usecase, self.pins, builds)
        done = dbt.invoke("run", variables=variables, target=self.settings.home / "target", project=project)
        assert done.returncode == 0, done.stdout[-3000:]
        return builds

    @property
    def pins(self) -> dict[str, int]:
        return {name: pin(self.settings, f"{self.usecase.name}/raw/{name}").version for name in self.tables}

    @property
    def tables(self) -> list[str]:
        return list(self.usecase.sources.tables)

    def rows(self, table: str) -> pl.DataFrame:
        return read(self.settings, pin(self.settings, f"{self.usecase.name}/{table}")).collect()

    def fingerprints(self) -> dict[str, str]:
        """Of all raw and feature tables."""
        tables = [f"raw/{name}" for name in self.tables] + [f"features/{name}" for name in MODELS]
        return {table: fingerprint_frame(self.rows(table), [], exclude=[RUN_ID]) for table in tables}


def ranges(builds: dict[str, Build]) -> Ranges:
    assert not any(build.whole for build in builds.values())
    return {name: build.ranges for name, build in builds.items() if build.ranges}


@pytest.fixture(scope="module")
def one_batch(spark_server: Settings, usecase: UseCase) -> Home:
    """All days ingested and built at once, on a local disk."""
    home = Home(spark_server, usecase, "batch")
    home.ingest(FIRST, LAST)
    builds = home.build(home.at(LAST + DAY))
    assert all(one.whole for one in builds.values())
    return home


@pytest.fixture(scope="module")
def of_one_batch(one_batch: Home) -> dict[str, str]:
    return one_batch.fingerprints()


def test_what_is_overdue_or_due_at_a_tick_is_what_was_known_by_then(one_batch: Home) -> None:
    """Against brute force: at each tick, only the schedules published and the departures that had happened."""
    ticks = one_batch.rows("features/origin_ticks").sort("origin", "event_timestamp")
    planned = one_batch.rows("raw/flight_schedules").select("flight_id", "origin", "scheduled_departure")
    left = one_batch.rows("raw/flight_departures").select("flight_id", "available_at", "dep_delay")
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


def test_the_spare_time_of_an_aircraft_is_that_of_its_newest_departure(one_batch: Home) -> None:
    ticks = one_batch.rows("features/aircraft_ticks").filter(pl.col("aircraft_departures_168h") > 0)
    planned = one_batch.rows("raw/flight_schedules").drop_nulls("tailnum")
    left = one_batch.rows("raw/flight_departures")
    compared = 0
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
        compared += 1
    assert compared > 50


def test_ingesting_the_same_rows_again_builds_nothing(one_batch: Home, of_one_batch: dict[str, str]) -> None:
    before = one_batch.pins
    one_batch.ingest(FIRST + DAY, LAST)
    assert before != one_batch.pins
    assert ranges(one_batch.plan(one_batch.at(LAST + DAY))) == {}
    assert one_batch.fingerprints() == of_one_batch


def test_a_changed_value_or_line_changes_what_follows_from_it_and_nothing_else(
    one_batch: Home, of_one_batch: dict[str, str], tmp_path: Path
) -> None:
    path = one_batch.settings.table_path("flight_delay", "raw", "flight_arrivals")
    day = date(2013, 3, 11)
    rows = one_batch.rows("raw/flight_arrivals").filter(pl.col("day") == day)
    first = pl.int_range(pl.len()) == 0
    replace_days(path, rows.with_columns(arr_delay=pl.when(first).then(500.0).otherwise("arr_delay")), day, day)
    of_value = ranges(one_batch.plan(one_batch.at(LAST + DAY)))
    assert of_value == {
        "destination_ticks": [(day, LAST)],
        "route_ticks": [(day, day + DAY)],
        "flight_ticks": [(day, LAST)],
        "station_ticks": [(day, LAST)],
        "labelled_flights": [(day, day)],
    }
    project = tmp_path / "features"
    shutil.copytree(dbt.PROJECT, project)
    model = project / "models/flight_delay/carrier_ticks.sql"
    sql = model.read_text()
    assert sql.count("if(dep_delay > 15, 1, 0)") == 1
    model.write_text(sql.replace("if(dep_delay > 15, 1, 0)", "if(dep_delay > 20, 1, 0)"))
    builds = one_batch.build(one_batch.at(LAST + DAY), project)
    carrier = builds.pop("carrier_ticks")
    assert carrier.whole
    assert carrier.ranges == [(FIRST, LAST)]
    assert ranges(builds) == of_value
    after = one_batch.fingerprints()
    assert {table for table in after if of_one_batch[table] != after[table]} == {
        "raw/flight_arrivals",
        "features/carrier_ticks",
        "features/destination_ticks",
        "features/flight_ticks",
        "features/labelled_flights",
        "features/route_ticks",
        "features/station_ticks",
    }


@pytest.fixture
def bucket(s3: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """A bucket's URI, with its credentials in the environment; None without a server."""
    for name, value in (s3 or {}).items():
        monkeypatch.setenv(name, value)
    return "s3://lake" if s3 else None


def home_without_the_late_day(server: Settings, usecase: UseCase, name: str, lakehouse: str | None, last: date) -> Home:
    """All days until `last` are ingested, except `LATE`; nothing is built."""
    home = Home(server, usecase, name, lakehouse)
    home.ingest(FIRST, LATE - DAY)
    home.ingest(LATE + DAY, last)
    return home


def ranges_of_the_late_day(*due: tuple[date, date]) -> Ranges:
    """What is built when `LATE` arrives last; `due`: built at this clock anyway.

    An arrival is read on its route for 24 hours, weather for 12, all else for 168 or more: past the last day.
    """
    long = ("origin_ticks", "carrier_ticks", "station_ticks", "destination_ticks", "flight_ticks", "aircraft_ticks")
    short = ("route_ticks", "weather_ticks")
    return {
        **{key: [(LATE, LAST)] for key in long},
        **{key: [(LATE, LATE + DAY), *due] for key in short},
        "labelled_flights": [(LATE, LATE), *due],
    }


def test_within_a_day_out_of_order_and_in_a_bucket_the_features_are_the_same(
    spark_server: Settings, usecase: UseCase, of_one_batch: dict[str, str], bucket: str | None
) -> None:
    """Some days at once, the last of them as of 7 o'clock; then the next day, and one that arrives late."""
    lakehouse = bucket and f"{bucket}/pieces"
    home = home_without_the_late_day(spark_server, usecase, "pieces", lakehouse, HOURLY)
    home.build(home.at(HOURLY, 7))
    assert ranges(home.plan(home.at(HOURLY, 16))) == {name: [(HOURLY, HOURLY)] for name in MODELS}
    home.ingest(LAST, LAST)
    assert ranges(home.plan(home.at(LAST + DAY), requested=(LAST,)))["origin_ticks"] == [(HOURLY, LAST)]
    home.ingest(LATE, LATE)
    assert ranges(home.build(home.at(LAST + DAY))) == ranges_of_the_late_day((HOURLY, LAST))
    assert home.fingerprints() == of_one_batch


@pytest.mark.drill(minutes=7)
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_built_at_every_step_the_features_are_those_of_one_batch(
    spark_server: Settings, usecase: UseCase, of_one_batch: dict[str, str], bucket: str | None, place: str
) -> None:
    """Some days at once, one by the hour, one on request, one late; then the same rows again. A build at every step."""
    if place == "bucket" and bucket is None:
        pytest.skip(s3_server.MISSING)
    lakehouse = f"{bucket}/steps" if place == "bucket" else None
    home = home_without_the_late_day(spark_server, usecase, f"steps-{place}", lakehouse, HOURLY - DAY)
    home.build(home.at(HOURLY))
    home.ingest(HOURLY, HOURLY)
    for hours in (7, 16):
        assert all(built == [(HOURLY, HOURLY)] for built in ranges(home.build(home.at(HOURLY, hours))).values())
    home.ingest(LAST, LAST)
    assert ranges(home.build(home.at(LAST + DAY), requested=(LAST,)))["origin_ticks"] == [(HOURLY, LAST)]
    home.ingest(LATE, LATE)
    assert ranges(home.build(home.at(LAST + DAY))) == ranges_of_the_late_day()
    assert home.fingerprints() == of_one_batch
    home.ingest(FIRST + DAY, LAST)
    assert ranges(home.build(home.at(LAST + DAY))) == {}
    assert home.fingerprints() == of_one_batch
