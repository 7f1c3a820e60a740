"""The Feast repository of a use case: its configuration, registration at pinned versions, historical features.

Owns: how a use case's settings become Feast's. Does not own: what the features are (the use case's definitions), the
join (`asof.py`), what is written online (`materialise.py`).
"""

from __future__ import annotations

from typing import Any

import polars as pl
from feast import FeatureStore, FeatureView, RepoConfig

from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.foreign_code import refuse_foreign_code
from throughline.featurestore.layout import EVENT_TIME, PUSHED, registry_file
from throughline.featurestore.online_format import (
    DUMMY_KEY,
    VALUE_TYPES,
    OnlineView,
    OnlineViews,
    store_folder,
    views_path,
)
from throughline.featurestore.pushed import with_pushed
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.records.store import write_record
from throughline.usecase import UseCase, load_object

_PACKAGE = "throughline.featurestore"


def open_store(settings: Settings, usecase: UseCase) -> FeatureStore:
    """The use case's store as last registered. Cheap; several processes may hold one. Raises when it holds code."""
    folder, registry = store_folder(settings, usecase.name), registry_file(settings, usecase)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_foreign_code(registry, usecase.features.definitions.partition(".")[0])
    online: dict[str, Any] = {
        "type": f"{_PACKAGE}.online_stores.NewestSqliteOnlineStore",
        "path": str(folder / "online.db"),
    }
    if settings.online_store is not None:
        online = {"type": f"{_PACKAGE}.online_stores.NewestRedisOnlineStore", "url": settings.online_store}
    return FeatureStore(
        config=RepoConfig(
            project=usecase.name,
            provider="local",
            registry={"registry_type": "file", "path": str(registry), "cache_ttl_seconds": 0},
            online_store=online,
            offline_store={
                "type": f"{_PACKAGE}.delta_store.DeltaOfflineStore",
                "engine": settings.offline_engine,
                "spark_remote": settings.spark_url,
            },
            coerce_tz_aware=False,  # a time without a zone is refused, not taken for UTC
            entity_key_serialization_version=3,
        )
    )


def register(settings: Settings, usecase: UseCase, pins: list[TableReference]) -> dict[str, int]:
    """Apply the use case's definitions with every source pinned; returns the version per source table.

    Raises when a source has no pin. A view that is no longer defined is removed.
    """
    versions = {pin.name: pin for pin in pins}
    used: dict[str, int] = {}

    def source(table: str) -> DeltaSource:
        if table not in versions:
            raise ThroughlineError(f"Feature view source {table} has no pinned version: materialise {table} first.")
        used.update({name: versions[name].version for name in (table, f"{table}{PUSHED}") if name in versions})
        plain = DeltaSource(
            name=table,
            path=str(settings.lakehouse / versions[table].table),
            version=versions[table].version,
            timestamp_field=EVENT_TIME,
        )
        return with_pushed(plain, used.get(f"{table}{PUSHED}"))

    objects = load_object(usecase.features.definitions).build(source)
    store = open_store(settings, usecase)
    defined = {each.name for each in objects}
    gone: list[Any] = [view for view in store.list_feature_views() if view.name not in defined]
    store.apply(objects, objects_to_delete=gone, partial=not gone)
    # requests read the views of the feature service, each with the service's features of it
    views = {view.name: view for view in store.list_feature_views()}
    projections = store.get_feature_service(usecase.features.service).feature_view_projections
    read = [online_view(views[each.name], [feature.name for feature in each.features]) for each in projections]
    write_record(views_path(settings, usecase.name), OnlineViews(views=read))
    return used


def online_view(view: FeatureView, features: list[str]) -> OnlineView:
    """Some features of a view as they are read online. Raises for a type that the model server cannot read."""
    types = {field.name: field.dtype.to_value_type().name for field in view.features}
    if unknown := [name for name in features if types[name] not in VALUE_TYPES]:
        raise ThroughlineError(
            f"Feature {unknown[0]} of {view.name} has type {types[unknown[0]]}, which cannot be read online: "
            f"use one of {', '.join(sorted(VALUE_TYPES))}."
        )
    keys: dict[str, Any] = {field.name: field.dtype.to_value_type().name for field in view.entity_columns}
    return OnlineView(
        name=view.name,
        entities=view.entities,
        keys=keys or {DUMMY_KEY: "STRING"},
        features=features,
        ttl=view.ttl or None,
    )


def historical_features(settings: Settings, usecase: UseCase, spine: pl.DataFrame, time_column: str) -> pl.DataFrame:
    """The spine's rows, in their order, with the feature service's values as known at `time_column` (UTC)."""
    store = open_store(settings, usecase)
    entity_df = spine.to_pandas()
    other_times = [n for n, t in spine.schema.items() if t.is_temporal() and n != time_column]
    # Feast takes the only datetime column, or one named event_timestamp, as the time of the join
    job = store.get_historical_features(
        entity_df.drop(columns=other_times).rename(columns={time_column: EVENT_TIME}),
        store.get_feature_service(usecase.features.service),
        # a row pushed later than it happened was not known before
        filter_by_created_timestamp=True,
    )
    joined = pl.DataFrame(job.to_arrow()).drop(EVENT_TIME)
    return spine.hstack([joined[name] for name in joined.columns if name not in spine.columns])
