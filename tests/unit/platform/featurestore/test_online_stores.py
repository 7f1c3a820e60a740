"""The online stores of a configuration: those that keep the newest row, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from feast import FileSource, RepoConfig

from throughline.featurestore.delta_store import DeltaOfflineStore
from throughline.featurestore.online_stores import NewestSqliteOnlineStore, online_store_of
from throughline.featurestore.windows import EPOCH
from throughline.foundation.errors import ThroughlineError

OURS = "throughline.featurestore.online_stores.NewestSqliteOnlineStore"


def config(tmp_path: Path, kind: str) -> RepoConfig:
    return RepoConfig(
        project="u",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store={"type": kind, "path": str(tmp_path / "online.db")},
        entity_key_serialization_version=3,
    )


def test_a_store_that_may_keep_an_older_row_is_refused(tmp_path: Path) -> None:
    assert isinstance(online_store_of(config(tmp_path, OURS)), NewestSqliteOnlineStore)
    with pytest.raises(ThroughlineError, match="SqliteOnlineStore does not keep the newest row"):
        online_store_of(config(tmp_path, "sqlite"))


def test_rows_are_pulled_from_delta_tables_only(tmp_path: Path) -> None:
    other = FileSource(name="other", path=str(tmp_path / "rows.parquet"), timestamp_field="at")
    with pytest.raises(ThroughlineError, match="Source other is a FileSource: this store reads DeltaSource only"):
        DeltaOfflineStore.pull_latest_from_table_or_query(
            config(tmp_path, OURS), other, ["place"], ["value"], "at", None, EPOCH, EPOCH
        )
