"""The Feast definitions and the registry's views, as records of the feature store.

Does not own: the entries that people see (`features.py`, which needs no Feast).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from feast import FeatureService, FeatureView

from throughline.catalogue.features import Lineage, deprecation
from throughline.featurestore.delta_source import DeltaSource, source_of
from throughline.featurestore.layout import EVENT_TIME
from throughline.featurestore.lineage import Upstream
from throughline.featurestore.store import open_store
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.records import FeatureRecord, FeatureViewRecord
from throughline.usecase import UseCase, load_object


def registered(
    settings: Settings, usecase: UseCase, pins: Iterable[TableReference], lineage: Lineage, tables: Mapping[str, str]
) -> list[FeatureViewRecord]:
    """The views in the use case's registry, on `pins`; see `describe`."""
    store = open_store(settings, usecase)
    return describe(
        store.list_feature_views(), store.list_feature_services(), pins, lineage, tables, owners=usecase.owners
    )


def describe(
    views: Iterable[FeatureView],
    services: Iterable[FeatureService],
    pins: Iterable[TableReference],
    lineage: Lineage,
    tables: Mapping[str, str],
    owners: Sequence[str],
) -> list[FeatureViewRecord]:
    """Feast's views as records.

    pins: the tables that the views are registered on; lineage: per table and column; tables: descriptions by table,
    for views without one; owners: of the use case, for views without one.
    """
    versions = {pin.name: pin for pin in pins}
    members = [(s.name, p.name, {f.name for f in p.features}) for s in services for p in s.feature_view_projections]
    records = []
    for view in sorted(views, key=lambda view: view.name):
        source = source_of(view)
        features = [
            FeatureRecord(
                name=feature.name,
                type=str(feature.dtype),
                description=feature.description,
                tags=dict(feature.tags),
                services=sorted(s for s, name, held in members if name == view.name and feature.name in held),
                upstream=_upstream(lineage.get(source.name), source.column(feature.name)),
            )
            for feature in view.features
        ]
        records.append(
            FeatureViewRecord(
                name=view.name,
                description=view.description or tables.get(source.name, ""),
                owner=view.owner or ", ".join(owners),
                tags=dict(view.tags),
                entities=list(view.entities),
                table=versions[source.name],
                features=features,
            )
        )
    return records


def _upstream(columns: Mapping[str, Sequence[Upstream]] | None, column: str) -> list[str] | None:
    return None if columns is None or column not in columns else [str(source) for source in columns[column]]


def column_descriptions(usecase: UseCase) -> dict[str, dict[str, str]]:
    """Table -> column -> description in the use case's definitions, with a note when the feature is deprecated."""

    def source(table: str) -> DeltaSource:
        return DeltaSource(name=table, path=table, version=0, timestamp_field=EVENT_TIME)

    descriptions: dict[str, dict[str, str]] = {}
    for view in load_object(usecase.features.definitions).build(source):
        for feature in view.features if isinstance(view, FeatureView) else ():
            why, instead = deprecation(view, feature)
            note = f" Deprecated ({why}){f', use {instead}' if instead else ''}." if why else ""
            table = source_of(view)
            descriptions.setdefault(table.name, {})[table.column(feature.name)] = f"{feature.description}{note}"
    return descriptions
