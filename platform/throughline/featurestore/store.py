"""The Feast repository of a use case: configuration, registration at pinned versions, retrieval.

Owns: where a use case's registry and online store live. Does not own: what the features are (the use case's
definitions), the join (`asof.py`), what is brought online (`materialise.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from throughline.featurestore.foreign_code import refuse_foreign_code
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, pin
from throughline.usecase import UseCase, load_object

if TYPE_CHECKING:
    from feast import FeatureStore

EVENT_TIME, LAYER = "event_timestamp", "features"
ONLINE_STORES = "throughline.featurestore.online_stores"


def store_folder(settings: Settings, usecase: UseCase) -> Path:
    return settings.feast_home / usecase.name


def open_store(settings: Settings, usecase: UseCase) -> FeatureStore:
    """The use case's store as last registered. Cheap; several processes may hold one. Raises when it holds code."""
    from feast import FeatureStore, RepoConfig

    folder = store_folder(settings, usecase)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign_code(folder / "registry.db", usecase.features.definitions.partition(".")[0])
    return FeatureStore(
        config=RepoConfig(
            project=usecase.name,
            provider="local",
            registry={"registry_type": "file", "path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
            online_store=_online_store(settings, folder),
            offline_store={
                "type": "throughline.featurestore.delta_store.DeltaOfflineStore",
                "engine": settings.offline_engine,
                "spark_remote": settings.spark_url,
            },
            coerce_tz_aware=False,  # a time without a zone is refused, not taken for UTC
            entity_key_serialization_version=3,
        )
    )


def _online_store(settings: Settings, folder: Path) -> dict[str, Any]:
    if settings.online_store is None:
        return {"type": f"{ONLINE_STORES}.NewestSqliteOnlineStore", "path": str(folder / "online.db")}
    return {"type": f"{ONLINE_STORES}.NewestRedisOnlineStore", "url": settings.online_store}


def pin_sources(settings: Settings, usecase: UseCase, tables: Iterable[str]) -> list[TableReference]:
    """The feature tables as they stand, and beside each the rows pushed to it, where there are any."""
    from throughline.featurestore.pushed import SUFFIX

    names = [f"{usecase.name}/{LAYER}/{table}" for table in tables]
    pushed = [f"{name}{SUFFIX}" for name in names]
    return [pin(settings, name) for name in names] + [
        pin(settings, name) for name in pushed if current_version(settings.lakehouse / name) is not None
    ]


def register(settings: Settings, usecase: UseCase, pins: list[TableReference]) -> dict[str, int]:
    """Apply the use case's definitions with every source pinned; returns the version per source table.

    Raises when a source has no pin. A view that is no longer defined is taken away.
    """
    from throughline.featurestore.delta_source import DeltaSource
    from throughline.featurestore.pushed import SUFFIX, with_pushed

    versions = {pin.name: pin for pin in pins}
    used: dict[str, int] = {}

    def source(table: str) -> DeltaSource:
        if table not in versions:
            raise ThroughlineError(f"Feature view source {table} has no pinned version: materialise {table} first.")
        used.update({name: versions[name].version for name in (table, f"{table}{SUFFIX}") if name in versions})
        plain = DeltaSource(
            name=table,
            path=str(settings.lakehouse / versions[table].table),
            version=versions[table].version,
            timestamp_field=EVENT_TIME,
        )
        return with_pushed(plain, used.get(f"{table}{SUFFIX}"))

    objects = load_object(usecase.features.definitions).build(source)
    store = open_store(settings, usecase)
    defined = {each.name for each in objects}
    gone = [view for view in store.list_feature_views() if view.name not in defined]
    store.apply(objects, objects_to_delete=gone, partial=not gone)
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
        # what was pushed later than it happened was not known before
        filter_by_created_timestamp=True,
    )
    joined = pl.from_arrow(job.to_arrow()).drop(EVENT_TIME)
    return spine.hstack([joined[name] for name in joined.columns if name not in spine.columns])
