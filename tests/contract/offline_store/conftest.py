"""What the offline store's tests share: both engines behind one setting, and Feast stores in folders of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore, RepoConfig

from throughline.featurestore.delta_source import DeltaSource
from throughline.foundation.settings import Settings


@pytest.fixture(scope="session")
def spark_remote(spark_server: Settings) -> str:
    return spark_server.spark_url


@pytest.fixture(scope="session", params=["polars", "spark"])
def engine(request: pytest.FixtureRequest) -> dict[str, str]:
    """The offline_store settings of an engine. What passes with one passes with the other."""
    if request.param == "polars":
        return {"engine": "polars"}
    return {"engine": "spark", "spark_remote": request.getfixturevalue("spark_remote")}


MakeStore = Callable[..., FeatureStore]


@pytest.fixture(scope="session")
def make_store() -> MakeStore:
    """A Feast store in a folder; more settings of the offline store by keyword."""

    def make(home: Path, coerce_tz_aware: bool = True, pull_latest: bool = True, **offline: Any) -> FeatureStore:
        return FeatureStore(
            config=RepoConfig(
                project="p",
                provider="local",
                registry={"registry_type": "file", "path": str(home / "registry.db"), "cache_ttl_seconds": 0},
                online_store={"type": "sqlite", "path": str(home / "online.db")},
                offline_store={"type": "throughline.featurestore.delta_store.DeltaOfflineStore", **offline},
                materialization={"pull_latest_features": pull_latest},
                entity_key_serialization_version=3,
                coerce_tz_aware=coerce_tz_aware,
            )
        )

    return make


@pytest.fixture(scope="session")
def as_source() -> Callable[..., DeltaSource]:
    """Write a frame as the next version of a table, and give the source that is pinned to it."""

    def write(path: Path, frame: pl.DataFrame, **more: Any) -> DeltaSource:
        write_deltalake(str(path), frame.to_arrow(), mode="overwrite", schema_mode="overwrite")
        version = DeltaTable(str(path)).version()
        options = {"name": path.name, "timestamp_field": "event_timestamp", **more}
        return DeltaSource(path=str(path), version=version, **options)

    return write
