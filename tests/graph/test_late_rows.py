"""Source rows that came late are built once: the sensor on a real instance, with real tables that say what they know.

The feature tables are written here as the dbt models would, with nothing in them but where they came from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    SensorResult,
    SkipReason,
    build_sensor_context,
    instance_for_test,
    job,
    op,
)
from deltalake import CommitProperties, write_deltalake

from assets.automation import late_rows_sensor
from throughline.featurestore import dbt
from throughline.featurestore.incremental import models_of, plan_builds, source_versions
from throughline.foundation import tags
from throughline.foundation.settings import Settings, load_settings
from throughline.ingestion.ingest import ingest_days, ingest_static
from throughline.lakehouse.table import pin, read, replace_days
from throughline.usecase import UseCase, get_usecase

FIRST, LAST = date(2013, 1, 5), date(2013, 1, 9)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def built_home(tmp_path_factory: pytest.TempPathFactory, usecase: UseCase) -> Settings:
    """A home whose raw days are all built."""
    home = tmp_path_factory.mktemp("built")
    settings = load_settings(home=home, data_from=FIRST, data_until=LAST + DAY)
    for name, table in usecase.sources.tables.items():
        if table.static:
            ingest_static(settings, usecase, name, "test")
        else:
            ingest_days(settings, usecase, name, FIRST, LAST, "test", usecase.day_start(LAST + DAY))
    build(settings, usecase)
    return settings


@pytest.fixture
def settings(built_home: Settings, tmp_path: Path) -> Settings:
    """A copy of it that a test may change."""
    shutil.copytree(built_home.home, tmp_path / "home")
    return load_settings(home=tmp_path / "home", data_from=FIRST, data_until=LAST + DAY)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with instance_for_test() as instance:
        yield instance


def build(settings: Settings, usecase: UseCase) -> None:
    """Every feature table was built from the present versions of its sources, by its own commit."""
    manifest = dbt.manifest(settings)
    pins = source_versions(settings, usecase)
    assert pins is not None
    for name, one in plan_builds(settings, usecase, manifest, pins, usecase.day_start(LAST + DAY)).items():
        write_deltalake(
            str(settings.table_path(usecase.name, "features", name)),
            pl.DataFrame({"day": [LAST]}).to_arrow(),
            mode="overwrite",
            commit_properties=CommitProperties(custom_metadata={"userMetadata": one.origin.model_dump_json()}),
        )
    assert len(models_of(manifest, usecase)) == 9


def correct(settings: Settings, usecase: UseCase, day: date, delay: float) -> None:
    """One departure of a day is delivered again with another delay."""
    table = f"{usecase.name}/raw/flight_departures"
    rows = read(settings, pin(settings, table)).filter(pl.col("day") == day).collect()
    first = pl.int_range(pl.len()) == 0
    corrected = rows.with_columns(dep_delay=pl.when(first).then(delay).otherwise("dep_delay"))
    replace_days(settings.lakehouse / table, corrected, day, day)


def tick(instance: DagsterInstance, settings: Settings, usecase: UseCase, cursor: str | None = None) -> Any:
    context = build_sensor_context(instance=instance, cursor=cursor, resources={"settings": settings})
    return late_rows_sensor(usecase)(context)


@op
def build_op(context) -> None:
    if context.run.tags.get("fails"):
        raise RuntimeError("the endpoint was lost")


@job
def features() -> None:
    build_op()


def execute(instance: DagsterInstance, result: SensorResult, **more: str) -> None:
    (request,) = result.run_requests
    features.execute_in_process(instance=instance, tags=dict(request.tags) | more, raise_on_error=False)


def test_what_is_built_asks_for_nothing(instance: DagsterInstance, settings: Settings, usecase: UseCase) -> None:
    first = tick(instance, settings, usecase)
    assert not first.run_requests
    # and is not even looked at again until a source is written
    assert isinstance(tick(instance, settings, usecase, first.cursor), SkipReason)


def test_a_corrected_row_asks_for_the_days_that_saw_it(
    instance: DagsterInstance, settings: Settings, usecase: UseCase
) -> None:
    correct(settings, usecase, date(2013, 1, 7), 99.0)
    (request,) = tick(instance, settings, usecase).run_requests
    assert (request.tags[tags.RANGE_START], request.tags[tags.RANGE_END]) == ("2013-01-07", "2013-01-09")
    assert "came late or were corrected" in request.tags[tags.CAUSE]


def test_rows_delivered_again_as_they_were_ask_for_nothing(
    instance: DagsterInstance, settings: Settings, usecase: UseCase
) -> None:
    before = source_versions(settings, usecase)
    ingest_days(settings, usecase, "flight_departures", FIRST, LAST, "again", usecase.day_start(LAST + DAY))
    assert source_versions(settings, usecase) != before
    assert not tick(instance, settings, usecase).run_requests


def test_once_built_a_change_asks_no_more(instance: DagsterInstance, settings: Settings, usecase: UseCase) -> None:
    correct(settings, usecase, date(2013, 1, 7), 99.0)
    execute(instance, tick(instance, settings, usecase))
    build(settings, usecase)
    for _ in range(20):
        assert not getattr(tick(instance, settings, usecase), "run_requests", None)


def test_a_failed_build_is_tried_again_under_another_key_and_not_for_ever(
    instance: DagsterInstance, settings: Settings, usecase: UseCase
) -> None:
    correct(settings, usecase, date(2013, 1, 7), 99.0)
    keys = set()
    for _ in range(3):
        result = tick(instance, settings, usecase)
        keys.add(result.run_requests[0].run_key)
        execute(instance, result, fails="yes")
    assert len(keys) == 3
    given_up = tick(instance, settings, usecase)
    assert isinstance(given_up, SkipReason)
    assert "2013-01-07 to 2013-01-09" in given_up.skip_message
    correct(settings, usecase, date(2013, 1, 8), 98.0)
    assert tick(instance, settings, usecase).run_requests


def test_a_run_under_way_is_waited_for(instance: DagsterInstance, settings: Settings, usecase: UseCase) -> None:
    correct(settings, usecase, date(2013, 1, 7), 99.0)
    run = instance.create_run_for_job(features, status=DagsterRunStatus.STARTED)
    assert "under way" in tick(instance, settings, usecase).skip_message
    instance.delete_run(run.run_id)
    assert tick(instance, settings, usecase).run_requests


def test_before_everything_is_there_nothing_is_asked(
    instance: DagsterInstance, settings: Settings, usecase: UseCase, tmp_path: Any
) -> None:
    empty = load_settings(home=tmp_path / "empty")
    assert isinstance(tick(instance, empty, usecase), SkipReason)
