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
from throughline.featurestore.online_format import (
    DUMMY_KEY,
    VALUE_TYPES,
    OnlineView,
    OnlineViews,
    store_folder,
    views_path,
)
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, pin
from throughline.records.store import write_record
from throughline.usecase import UseCase, load_object

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

EVENT_TIME, LAYER = "event_timestamp", "features"
ONLINE_STORES = "throughline.featurestore.online_stores"


def open_store(settings: Settings, usecase: UseCase) -> FeatureStore:
    """The use case's store as last registered. Cheap; several processes may hold one. Raises when it holds code."""
    from feast import FeatureStore, RepoConfig

    folder = store_folder(settings, usecase.name)
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
    write_record(views_path(settings, usecase.name), OnlineViews(views=service_views(store, usecase.features.service)))
    return used


def service_views(store: FeatureStore, service: str) -> list[OnlineView]:
    """What requests read: the views of a feature service, each with the features that the service takes of it."""
    known = {view.name: view for view in store.list_feature_views()}
    taken = store.get_feature_service(service).feature_view_projections
    return [online_view(known[each.name], [feature.name for feature in each.features]) for each in taken]


def online_view(view: FeatureView, features: list[str]) -> OnlineView:
    """Some features of a view as they are read online. Raises when the model server does not know a type."""
    types = {field.name: field.dtype.to_value_type().name for field in view.features}
    if unknown := [name for name in features if types[name] not in VALUE_TYPES]:
        raise ThroughlineError(
            f"Feature {unknown[0]} of {view.name} has type {types[unknown[0]]}, which cannot be read online: "
            f"use one of {', '.join(sorted(VALUE_TYPES))}."
        )
    return OnlineView(
        name=view.name,
        entities=view.entities,
        keys={field.name: field.dtype.to_value_type().name for field in view.entity_columns} or {DUMMY_KEY: "STRING"},
        features=features,
        ttl=view.ttl or None,
    )


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
