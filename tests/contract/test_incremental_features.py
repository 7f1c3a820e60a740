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

from tests import s3_server
from throughline import services
from throughline.featurestore import dbt
from throughline.featurestore.incremental import Build, dbt_variables, plan_builds
from throughline.lakehouse import spark
from throughline.lakehouse.identity import fingerprint_table
from throughline.lakehouse.ingest import ingest_days, ingest_static
from throughline.lakehouse.table import pin, read, replace_days
from throughline.settings import Settings, load_settings
from throughline.usecase import UseCase, get_usecase

pytestmark = pytest.mark.timeout(600)

# nine days around the night in which the clocks go forward
FIRST, LAST = date(2013, 3, 5), date(2013, 3, 13)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MODELS = ("aircraft_ticks", "carrier_ticks", "destination_ticks", "labelled_flights", "origin_ticks", "weather_ticks")
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


def identities(settings: Settings, usecase: UseCase) -> dict[str, str]:
    """Fingerprints of all raw and feature tables."""
    tables = [f"raw/{name}" for name in usecase.sources.tables] + [f"features/{name}" for name in MODELS]
    return {table: fingerprint_table(settings, pin(settings, f"{usecase.name}/{table}")) for table in tables}


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
    return identities(settings, usecase)


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
    # a departure is seen at its origin for 24 hours, of a carrier for 168, which reach past the last day
    assert ranges(builds) == {
        "origin_ticks": [(late, late + DAY)],
        "carrier_ticks": [(late, LAST)],
        "destination_ticks": [(late, LAST)],
        "aircraft_ticks": [(late, LAST)],
        "labelled_flights": [(late, late)],
        "weather_ticks": [(late, late)],
    }
    return settings


def test_batch_day_by_day_by_the_hour_and_out_of_order_give_the_same(
    one_batch: dict[str, str], in_pieces: Settings, usecase: UseCase
) -> None:
    assert identities(in_pieces, usecase) == one_batch


def test_in_a_bucket_they_are_the_same(
    one_batch: dict[str, str],
    usecase: UseCase,
    tmp_path: Path,
    free_port_base: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with s3_server.serve(s3_server.needed(), tmp_path / "buckets", ["lake"]) as address:
        for name, value in s3_server.environment(address).items():
            monkeypatch.setenv(name, value)
        settings = load_settings(
            home=tmp_path / "home", lakehouse_uri="s3://lake/x", data_from=FIRST,
            port_base=free_port_base + 20, spark_memory="1g",
        )  # fmt: skip
        try:
            services.up(settings, ["spark"])
            bring(settings, usecase, FIRST, LAST - DAY)
            build(settings, usecase, usecase.day_start(LAST))
            bring(settings, usecase, LAST, LAST)
            builds = build(settings, usecase, usecase.day_start(LAST + DAY))
            assert ranges(builds)["origin_ticks"] == [(LAST, LAST)]
            assert identities(settings, usecase) == one_batch
        finally:
            services.down(settings)


def test_the_same_rows_brought_again_build_nothing(in_pieces: Settings, usecase: UseCase) -> None:
    before = identities(in_pieces, usecase)
    versions = {name: pin(in_pieces, f"{usecase.name}/raw/{name}").version for name in usecase.sources.tables}
    bring(in_pieces, usecase, FIRST + DAY, LAST)
    assert versions != {name: pin(in_pieces, f"{usecase.name}/raw/{name}").version for name in usecase.sources.tables}
    assert ranges(build(in_pieces, usecase, usecase.day_start(LAST + DAY))) == {}
    assert identities(in_pieces, usecase) == before


def test_one_changed_value_changes_what_follows_from_it_and_nothing_else(in_pieces: Settings, usecase: UseCase) -> None:
    before = identities(in_pieces, usecase)
    path = in_pieces.table_path(usecase.name, "raw", "flight_arrivals")
    day = date(2013, 3, 11)
    rows = read(in_pieces, pin(in_pieces, f"{usecase.name}/raw/flight_arrivals")).filter(pl.col("day") == day).collect()
    first = pl.int_range(pl.len()) == 0
    replace_days(path, rows.with_columns(arr_delay=pl.when(first).then(500.0).otherwise("arr_delay")), day, day)
    builds = build(in_pieces, usecase, usecase.day_start(LAST + DAY))
    assert ranges(builds) == {"destination_ticks": [(day, LAST)], "labelled_flights": [(day, day)]}
    after = identities(in_pieces, usecase)
    assert {table for table in before if before[table] != after[table]} == {
        "raw/flight_arrivals",
        "features/destination_ticks",
        "features/labelled_flights",
    }


def test_one_changed_line_changes_its_own_table_and_no_other(
    in_pieces: Settings, usecase: UseCase, tmp_path: Path
) -> None:
    before = identities(in_pieces, usecase)
    project = tmp_path / "features"
    shutil.copytree(dbt.PROJECT, project)
    model = project / "models/flight_delay/carrier_ticks.sql"
    sql = model.read_text()
    assert sql.count("if(dep_delay > 15, 1, 0)") == 1
    model.write_text(sql.replace("if(dep_delay > 15, 1, 0)", "if(dep_delay > 20, 1, 0)"))
    builds = build(in_pieces, usecase, usecase.day_start(LAST + DAY), project)
    assert {name for name, one in builds.items() if one.ranges} == {"carrier_ticks"}
    assert builds["carrier_ticks"].whole
    after = identities(in_pieces, usecase)
    assert {table for table in before if before[table] != after[table]} == {"features/carrier_ticks"}
