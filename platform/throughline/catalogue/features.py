"""The catalogue of features: what is registered, how fresh it is, which models use it, how often it was read.

Owns: how these are put together, searched, and told to be deprecated. Does not own: what a feature is (the use case's
Feast definitions), what a table is (dbt's schema.yml), how it is shown (`cli/features.py`, the graph).

A feature, or all of a view, is deprecated by the tag `deprecated` (why), with `replaced_by` where that exists.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from throughline.featurestore.lineage import Upstream
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord, Record
from throughline.usecase import UseCase, load_object

if TYPE_CHECKING:
    from feast import FeatureService, FeatureView

DEPRECATED, REPLACED_BY = "deprecated", "replaced_by"

Lineage = Mapping[str, Mapping[str, Sequence[Upstream]]]


class Tagged(Protocol):
    """A feature or a view, Feast's or our record of it."""

    @property
    def tags(self) -> dict[str, str]: ...


class Freshness(Record):
    """The newest event at the data clock against what is promised; `fresh` is None where nothing is."""

    newest: datetime | None
    age_s: float | None
    allowed_s: float | None
    fresh: bool | None


class Entry(Record):
    """A feature or a feature view, as `throughline features --json` prints it."""

    kind: Literal["feature", "view"]
    name: str
    usecase: str
    view: str
    description: str
    type: str | None = Field(description="Feast's word for the type of the values; None for a view.")
    entity: list[str]
    owner: str
    tags: dict[str, str]
    deprecated: str | None = Field(description="Why it should not be used any more.")
    replaced_by: str | None
    services: list[str] = Field(description="The feature services that have it.")
    table: TableReference = Field(description="What it is pinned to.")
    upstream: list[str] | None = Field(description="Raw TABLE.COLUMN it is computed from; None: could not be told.")
    freshness: Freshness
    models: list[ModelReference] | None = Field(description="Trained on it; None: unknown.")
    models_unknown: str | None = Field(description="Why `models` is unknown.")
    reads: int = Field(description="Predictions that used it, by the inference log.")
    reads_from: TableReference | None = Field(description="The inference log; None: there is none yet.")
    profile: str | None = Field(description="The page of plots of that table version, once there is one.")
    features: list[str] = Field(description="Of a view: its features.")


@dataclass(frozen=True)
class Usage:
    """Who uses features: columns per model version (None: unknown, and why), and features per group of predictions."""

    models: Mapping[ModelReference, frozenset[str]] | None
    models_unknown: str | None
    predictions: Sequence[tuple[int, frozenset[str]]]
    log: TableReference | None

    def models_of(self, features: Iterable[str]) -> list[ModelReference] | None:
        wanted = set(features)
        return None if self.models is None else [model for model, used in self.models.items() if wanted & used]

    def reads_of(self, features: Iterable[str]) -> int:
        wanted = set(features)
        return sum(count for count, used in self.predictions if wanted & used)


@dataclass(frozen=True)
class State:
    """How the views stand: newest event time by view (UTC), and the profile page by view, where there is one."""

    now: datetime
    newest: Mapping[str, datetime | None]
    usage: Usage
    pages: Mapping[str, str] = field(default_factory=dict)


# What is registered


def describe(
    views: Iterable[FeatureView],
    services: Iterable[FeatureService],
    pins: Iterable[TableReference],
    lineage: Lineage,
    tables: Mapping[str, str],
    owners: Sequence[str],
) -> list[FeatureViewRecord]:
    """Feast's views in the catalogue's words.

    pins: the tables the views are registered on; lineage: per table and column; tables: descriptions of the tables,
    which stand for those of views that have none; owners: of the use case, for views that name none.
    """
    versions = {pin.name: pin for pin in pins}
    members = [(s.name, p.name, {f.name for f in p.features}) for s in services for p in s.feature_view_projections]
    return [
        FeatureViewRecord(
            name=view.name,
            description=view.description or tables.get(view.batch_source.name, ""),
            owner=view.owner or ", ".join(owners),
            tags=dict(view.tags),
            entities=list(view.entities),
            table=versions[view.batch_source.name],
            features=[
                FeatureRecord(
                    name=feature.name,
                    type=str(feature.dtype),
                    description=feature.description,
                    tags=dict(feature.tags),
                    services=sorted(s for s, name, held in members if name == view.name and feature.name in held),
                    upstream=_upstream(lineage.get(view.batch_source.name), view.batch_source.column(feature.name)),
                )
                for feature in view.features
            ],
        )
        for view in sorted(views, key=lambda view: view.name)
    ]


def _upstream(columns: Mapping[str, Sequence[Upstream]] | None, column: str) -> list[str] | None:
    return None if columns is None or column not in columns else [str(source) for source in columns[column]]


def defined(usecase: UseCase) -> dict[str, dict[str, str]]:
    """What the use case's definitions say of columns: table -> column -> description, and that it is deprecated."""
    from feast import FeatureView

    from throughline.featurestore.delta_source import DeltaSource
    from throughline.featurestore.store import EVENT_TIME

    def source(table: str) -> DeltaSource:
        return DeltaSource(name=table, path=table, version=0, timestamp_field=EVENT_TIME)

    said: dict[str, dict[str, str]] = {}
    for view in load_object(usecase.features.definitions).build(source):
        for feature in view.features if isinstance(view, FeatureView) else ():
            why, instead = _deprecated(view, feature)
            note = f" Deprecated ({why}){f', use {instead}' if instead else ''}." if why else ""
            column = view.batch_source.column(feature.name)
            said.setdefault(view.batch_source.name, {})[column] = f"{feature.description}{note}"
    return said


def registered(
    settings: Settings, usecase: UseCase, pins: Iterable[TableReference], lineage: Lineage, tables: Mapping[str, str]
) -> list[FeatureViewRecord]:
    """The views that the use case's registry holds now, on `pins`."""
    from throughline.featurestore.store import open_store

    store = open_store(settings, usecase)
    return describe(
        store.list_feature_views(), store.list_feature_services(), pins, lineage, tables, owners=usecase.owners
    )


def deprecations(views: Sequence[FeatureViewRecord]) -> list[str]:
    """A line for each deprecated feature that a feature service has, and for each replacement that does not exist."""
    known = {feature.name for view in views for feature in view.features} | {view.name for view in views}
    lines = []
    for view in views:
        for feature in view.features:
            why, instead = _deprecated(view, feature)
            if why is None:
                continue
            if instead and instead not in known:
                lines.append(f"{feature.name} is said to be replaced by {instead}, which nobody defines.")
            advice = f"use {instead}" if instead in known else "leave it out"
            lines += [f"{service} has the deprecated {feature.name} ({why}): {advice}." for service in feature.services]
    return lines


def _deprecated(view: Tagged, feature: Tagged | None = None) -> tuple[str | None, str | None]:
    """Why it is deprecated and what replaces it; a view's word holds for its features."""
    tags = {**view.tags, **(feature.tags if feature else {})}
    return (tags[DEPRECATED] or "deprecated", tags.get(REPLACED_BY)) if DEPRECATED in tags else (None, None)


# The catalogue


def entries(usecase: UseCase, record: FeatureStoreRecord, state: State) -> list[Entry]:
    """Each view, followed by its features."""
    return [
        _entry(usecase, view, feature, state)
        for view in record.views
        for feature in (None, *sorted(view.features, key=lambda feature: feature.name))
    ]


def _entry(usecase: UseCase, view: FeatureViewRecord, feature: FeatureRecord | None, state: State) -> Entry:
    members = [feature] if feature else view.features
    names = [member.name for member in members]
    sources = [member.upstream for member in members]
    said = feature or view
    why, instead = _deprecated(view, feature)
    allowed, newest = usecase.online.freshness.get(view.name), state.newest.get(view.name)
    age = state.now - newest if newest else None
    return Entry(
        kind="feature" if feature else "view",
        name=said.name,
        usecase=usecase.name,
        view=view.name,
        description=said.description,
        type=feature.type if feature else None,
        entity=view.entities,
        owner=view.owner,
        tags={**view.tags, **said.tags},
        deprecated=why,
        replaced_by=instead,
        services=sorted({service for member in members for service in member.services}),
        table=view.table,
        upstream=None if None in sources else sorted({column for columns in sources for column in columns or ()}),
        freshness=Freshness(
            newest=newest,
            age_s=age.total_seconds() if age is not None else None,
            allowed_s=allowed.total_seconds() if allowed else None,
            fresh=(age is not None and age <= allowed) if allowed else None,
        ),
        models=state.usage.models_of(names),
        models_unknown=state.usage.models_unknown,
        reads=state.usage.reads_of(names),
        reads_from=state.usage.log,
        profile=state.pages.get(view.name),
        features=[] if feature else names,
    )


def find(catalogue: Sequence[Entry], name: str) -> Entry:
    """The feature or view of that name. Raises one line with the nearest names, or with the use cases that have it."""
    found = [entry for entry in catalogue if entry.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        homes = ", ".join(sorted({entry.usecase for entry in found}))
        raise ThroughlineError(f"{name} is in several use cases ({homes}): say which by --usecase.")
    near = nearest([entry.name for entry in catalogue], name)
    advice = f"did you mean {', '.join(near)}?" if near else "`throughline features list` shows what there is."
    raise ThroughlineError(f"No feature or feature view is called {name}: {advice}")


def nearest(names: Iterable[str], wrong: str, limit: int = 3) -> list[str]:
    """Names that look like `wrong`, or contain it, the likeliest first."""
    known = {name.lower(): name for name in names}
    wrong = wrong.lower()
    alike = difflib.get_close_matches(wrong, known, n=limit, cutoff=0.6)
    holding = [name for name in known if wrong and wrong in name and name not in alike]
    return [known[name] for name in (*alike, *holding)][:limit]


def search(catalogue: Iterable[Entry], words: Sequence[str]) -> list[Entry]:
    """Entries in which every word stands somewhere, in any case; those with the words in their name come first."""
    wanted = [word.lower() for word in words]
    found = [entry for entry in catalogue if all(word in _text(entry) for word in wanted)]
    return sorted(found, key=lambda entry: (not all(word in entry.name.lower() for word in wanted), entry.name))


def _text(entry: Entry) -> str:
    tags = [text for tag in entry.tags.items() for text in tag]
    said = [entry.name, entry.view, entry.usecase, entry.description, entry.owner]
    return "\n".join([*said, *entry.entity, *entry.services, *tags, *(entry.upstream or [])]).lower()


# What it is assembled from


def read_catalogue(settings: Settings, usecase: UseCase, record: FeatureStoreRecord, now: datetime) -> list[Entry]:
    """The catalogue at `now` (UTC, the data clock), from tables at pinned versions; models are asked of MLflow."""
    from throughline.featurestore.profile_page import page_of

    pages = {view.name: page_of(settings, view.table) for view in record.views}
    state = State(
        now=now,
        newest={view.name: _newest(settings, record, view, now) for view in record.views},
        usage=read_usage(settings, usecase),
        pages={view: str(page) for view, page in pages.items() if page.exists()},
    )
    return entries(usecase, record, state)


def _newest(settings: Settings, record: FeatureStoreRecord, view: FeatureViewRecord, now: datetime) -> datetime | None:
    """When the newest row of the view happened, computed or pushed."""
    import polars as pl

    from throughline.featurestore.store import EVENT_TIME
    from throughline.lakehouse.table import read

    pushed = [source for source in record.sources if source.table == f"{view.table.table}_pushed"]
    known = pl.col(EVENT_TIME).filter(pl.col(EVENT_TIME) <= now).max()
    times = [read(settings, table).select(known).collect().item() for table in (view.table, *pushed)]
    return max((at for at in times if at is not None), default=None)


def read_usage(settings: Settings, usecase: UseCase) -> Usage:
    """Who uses the use case's features, as far as it can be told: MLflow may be down."""
    predictions, log = _predictions(settings, usecase)
    try:
        return Usage(_model_columns(settings, usecase), None, predictions, log)
    except ThroughlineError as error:
        return Usage(None, str(error), predictions, log)


def _model_columns(settings: Settings, usecase: UseCase) -> dict[ModelReference, frozenset[str]]:
    """The columns of the dataset of each model version. Raises when MLflow does not answer or a dataset is gone."""
    from throughline.lakehouse.table import open_table
    from throughline.registry.versions import dataset_tables

    tables = dataset_tables(settings, usecase.name)
    columns = {}
    for table in set(tables.values()):
        fields = open_table(settings.lakehouse / table.table, table.version).schema().fields
        columns[table] = frozenset(field.name for field in fields)
    return {model: columns[table] for model, table in sorted(tables.items())}


def _predictions(
    settings: Settings, usecase: UseCase
) -> tuple[list[tuple[int, frozenset[str]]], TableReference | None]:
    """How many predictions each model version made, and with which features: all of a version's use the same."""
    import polars as pl

    from throughline.events.schema import LAYER, TABLE, log_table
    from throughline.lakehouse.table import current_version, scan

    location = settings.table_path(usecase.name, LAYER, TABLE)
    version = current_version(location)
    if version is None:
        return [], None
    rows = scan(location, version)
    model = ["model_name", "model_version"]
    groups = []
    for *which, count in rows.group_by(model).len().collect().iter_rows():
        mine = [pl.col(name) == value for name, value in zip(model, which, strict=True)]
        sample: Any = json.loads(rows.filter(mine).select("features").head(1).collect().item())
        groups.append((count, frozenset(sample)))
    return groups, log_table(usecase.name, version)
