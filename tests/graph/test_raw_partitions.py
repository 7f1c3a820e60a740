"""Raw days: a range is one run and one commit; ingested twice it is the same; one day changes that day only."""

from __future__ import annotations

import polars as pl
import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult, materialize

from assets.raw import raw_assets
from assets.resources import RecordIOManager
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import pin, read
from throughline.usecase import UseCase, get_usecase

TABLE = "flight_delay/raw/flight_departures"
KEY = AssetKey(TABLE.split("/"))


@pytest.fixture
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def bring(
    settings: Settings, usecase: UseCase, first: str, last: str, instance: DagsterInstance
) -> ExecuteInProcessResult:
    return materialize(
        list(raw_assets(usecase).assets),
        selection=[KEY],
        instance=instance,
        resources={"settings": settings, "io_manager": RecordIOManager(settings)},
        tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
    )


def content(settings: Settings) -> pl.DataFrame:
    rows = read(settings, pin(settings, TABLE)).collect()
    return rows.drop("ingestion_run_id").sort("flight_id")


def test_a_range_of_days_is_one_commit_and_a_partition_each(settings: Settings, usecase: UseCase) -> None:
    with DagsterInstance.ephemeral() as instance:
        assert bring(settings, usecase, "2013-01-01", "2013-01-05", instance).success
        assert pin(settings, TABLE).version == 0
        assert instance.get_materialized_partitions(KEY) == {f"2013-01-0{day}" for day in range(1, 6)}
    assert content(settings)["day"].n_unique() == 5


def test_days_ingested_twice_hold_the_same_rows(settings: Settings, usecase: UseCase) -> None:
    with DagsterInstance.ephemeral() as instance:
        bring(settings, usecase, "2013-01-01", "2013-01-03", instance)
        before = content(settings)
        bring(settings, usecase, "2013-01-02", "2013-01-02", instance)
        assert pin(settings, TABLE).version == 1
        assert content(settings).equals(before)


def test_the_same_rows_have_the_same_data_version(settings: Settings, usecase: UseCase) -> None:
    with DagsterInstance.ephemeral() as instance:
        versions = set()
        for _ in range(2):
            bring(settings, usecase, "2013-01-01", "2013-01-02", instance)
            versions.add(
                instance.get_latest_materialization_event(KEY).asset_materialization.tags["dagster/data_version"]
            )
    assert len(versions) == 1
