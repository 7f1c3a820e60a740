"""The Feast repository of a use case: configuration, registration at pinned versions, retrieval, materialisation.

Owns: where a use case's registry and online store live, and that only one process writes the online store at a time.
Does not own: what the features are (the use case's definitions), the join (`asof.py`).
"""

from __future__ import annotations

import contextlib
import io
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from throughline.errors import ThroughlineError
from throughline.records import TableVersion
from throughline.settings import Settings
from throughline.usecase import UseCase, load_object

if TYPE_CHECKING:
    from feast import FeatureStore

EVENT_TIME = "event_timestamp"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _folder(settings: Settings, usecase: UseCase) -> Path:
    return settings.feast_home / usecase.name


def open_store(settings: Settings, usecase: UseCase) -> FeatureStore:
    """The use case's store as last registered. Cheap; several processes may hold one."""
    from feast import FeatureStore, RepoConfig

    folder = _folder(settings, usecase)
    folder.mkdir(parents=True, exist_ok=True)
    return FeatureStore(
        config=RepoConfig(
            project=usecase.name,
            provider="local",
            registry={"registry_type": "file", "path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": "throughline.featurestore.delta_store.DeltaOfflineStore"},
            # the default hands every row of the window to pandas, to keep one per entity
            materialization={"pull_latest_features": True},
            entity_key_serialization_version=3,
        )
    )


def register(settings: Settings, usecase: UseCase, pins: list[TableVersion]) -> dict[str, int]:
    """Apply the use case's definitions with every source pinned; returns the version per source table.

    Raises when a source has no pin.
    """
    from throughline.featurestore.delta_store import DeltaSource

    versions = {pin.table.rpartition("/")[2]: pin for pin in pins}
    used: dict[str, int] = {}

    def source(table: str) -> DeltaSource:
        if table not in versions:
            raise ThroughlineError(f"Feature view source {table} has no pinned version: materialise {table} first.")
        used[table] = versions[table].version
        return DeltaSource(
            name=table,
            path=str(settings.lakehouse / versions[table].table),
            version=versions[table].version,
            timestamp_field=EVENT_TIME,
        )

    objects = load_object(usecase.features.definitions).build(source)
    store = open_store(settings, usecase)
    _write_ahead_logging(_folder(settings, usecase) / "online.db")
    store.apply(objects)
    return used


def historical(settings: Settings, usecase: UseCase, spine: pl.DataFrame, time_column: str) -> pl.DataFrame:
    """The spine's rows, in their order, with the feature service's values as known at `time_column` (UTC)."""
    store = open_store(settings, usecase)
    entity_df = spine.to_pandas()
    other_times = [n for n, t in spine.schema.items() if t.is_temporal() and n != time_column]
    # Feast takes the only datetime column, or one named event_timestamp, as the time of the join
    job = store.get_historical_features(
        entity_df.drop(columns=other_times).rename(columns={time_column: EVENT_TIME}),
        store.get_feature_service(usecase.features.service),
    )
    joined = pl.from_arrow(job.to_arrow()).drop(EVENT_TIME)
    return spine.hstack([joined[name] for name in joined.columns if name not in spine.columns])


def materialise(settings: Settings, usecase: UseCase, start: datetime, end: datetime) -> None:
    """Write to the online store, per entity, the newest row with event time in [start, end] (UTC, inclusive).

    A window written twice leaves the same values. Overlapping windows are welcome: late rows are then picked up.
    """
    # Feast prints its progress to stdout, which belongs to whoever asked for a result
    with _one_writer(_folder(settings, usecase)), contextlib.redirect_stdout(io.StringIO()):
        open_store(settings, usecase).materialize(start, end)


def _write_ahead_logging(path: Path) -> None:
    """Let the model server read while a materialisation writes; the mode stays with the file."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    import fcntl

    with (folder / "online.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
