"""The catalogue of features: registered features with their freshness, the models that use them, and their reads.

Owns: entries, search, deprecation. Does not own: what a feature is (the use case's Feast definitions), what a table is
(dbt's schema.yml), how entries are shown (`cli/features.py`, the graph). Imports no Feast.

The tag `deprecated` (why), with `replaced_by` where there is a replacement, deprecates a feature or all of a view.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import polars as pl
from pydantic import Field

from throughline.events.schema import LAYER, TABLE, log_table, production
from throughline.featurestore.layout import EVENT_TIME, PUSHED
from throughline.featurestore.lineage import Upstream
from throughline.featurestore.profile_page import page_of
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, open_table, read, scan
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord, Record
from throughline.registry.versions import dataset_tables
from throughline.usecase import UseCase

DEPRECATED, REPLACED_BY = "deprecated", "replaced_by"

Lineage = Mapping[str, Mapping[str, Sequence[Upstream]]]


class Tagged(Protocol):
    """A feature or a view: Feast's, or our record of it."""

    @property
    def tags(self) -> dict[str, str]: ...


class Freshness(Record):
    """The age of the newest event on the data clock against the declared limit; `fresh` is None without one."""

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
    type: str | None = Field(description="Feast's type of the values; None for a view.")
    entity: list[str]
    owner: str
    tags: dict[str, str]
    deprecated: str | None = Field(description="Why it should not be used any more.")
    replaced_by: str | None
    services: list[str] = Field(description="The feature services that have it.")
    table: TableReference = Field(description="What it is pinned to.")
    upstream: list[str] | None = Field(description="Raw TABLE.COLUMN it is computed from; None: unknown.")
    freshness: Freshness
    models: list[ModelReference] | None = Field(description="Trained on it; None: unknown.")
    models_unknown: str | None = Field(description="Why `models` is unknown.")
    reads: int = Field(description="Predictions of production traffic that used it.")
    reads_from: TableReference | None = Field(description="The inference log; None: there is none yet.")
    profile: str | None = Field(description="The page of plots of that table version; None: there is none yet.")
    features: list[str] = Field(description="Of a view: its features.")


@dataclass(frozen=True)
class Usage:
    """Use of features: columns per model version (None: unknown, and why), and features per group of predictions."""

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
    """State of the views at `now` (UTC): newest event time and profile page by view, and use of features."""

    now: datetime
    newest: Mapping[str, datetime | None]
    usage: Usage
    pages: Mapping[str, str] = field(default_factory=dict)


def deprecations(views: Sequence[FeatureViewRecord]) -> list[str]:
    """A line for each deprecated feature that a feature service has, and for each replacement that does not exist."""
    known = {feature.name for view in views for feature in view.features} | {view.name for view in views}
    lines = []
    for view in views:
        for feature in view.features:
            why, instead = deprecation(view, feature)
            if why is None:
                continue
            if instead and instead not in known:
                lines.append(f"{feature.name} names the replacement {instead}, which is not defined.")
            advice = f"use {instead}" if instead in known else "leave it out"
            lines += [f"{service} has the deprecated {feature.name} ({why}): {advice}." for service in feature.services]
    return lines


def deprecation(view: Tagged, feature: Tagged | None = None) -> tuple[str | None, str | None]:
    """Why it is deprecated and what replaces it; a view's tags hold for its features."""
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
    described = feature or view
    why, instead = deprecation(view, feature)
    allowed, newest = usecase.online.freshness.get(view.name), state.newest.get(view.name)
    age = state.now - newest if newest else None
    return Entry(
        kind="feature" if feature else "view",
        name=described.name,
        usecase=usecase.name,
        view=view.name,
        description=described.description,
        type=feature.type if feature else None,
        entity=view.entities,
        owner=view.owner,
        tags={**view.tags, **described.tags},
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
    """The feature or view of that name. Raises with the nearest names, or with the use cases that have the name."""
    found = [entry for entry in catalogue if entry.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        usecases = ", ".join(sorted({entry.usecase for entry in found}))
        raise ThroughlineError(f"{name} is in several use cases ({usecases}): choose one with --usecase.")
    near = nearest(catalogue, name)
    advice = f"did you mean {', '.join(near)}?" if near else "`throughline features list` shows what there is."
    raise ThroughlineError(f"No feature or feature view is called {name}: {advice}")


def nearest(catalogue: Iterable[Entry], wrong: str) -> list[str]:
    """At most three names that are similar to `wrong` or contain it, the most similar first."""
    names = {entry.name.lower(): entry.name for entry in catalogue}
    wrong = wrong.lower()
    similar = difflib.get_close_matches(wrong, names, n=3, cutoff=0.6)
    containing = [name for name in names if wrong and wrong in name and name not in similar]
    return [names[name] for name in (*similar, *containing)][:3]


def search(catalogue: Iterable[Entry], words: Sequence[str]) -> list[Entry]:
    """Entries that contain every word, in any case; those with the words in their name come first."""
    wanted = [word.lower() for word in words]
    found = [entry for entry in catalogue if all(word in _text(entry) for word in wanted)]
    return sorted(found, key=lambda entry: (not all(word in entry.name.lower() for word in wanted), entry.name))


def _text(entry: Entry) -> str:
    tags = [text for tag in entry.tags.items() for text in tag]
    texts = [entry.name, entry.view, entry.usecase, entry.description, entry.owner]
    return "\n".join([*texts, *entry.entity, *entry.services, *tags, *(entry.upstream or [])]).lower()


# What it is read from


def read_catalogue(settings: Settings, usecase: UseCase, record: FeatureStoreRecord, now: datetime) -> list[Entry]:
    """The catalogue at `now` (UTC, the data clock), from tables at pinned versions and from MLflow's registry."""
    pages = {view.name: page_of(settings, view.table) for view in record.views}
    state = State(
        now=now,
        newest={view.name: _newest(settings, record, view, now) for view in record.views},
        usage=read_usage(settings, usecase),
        pages={view: str(page) for view, page in pages.items() if page.exists()},
    )
    return entries(usecase, record, state)


def _newest(settings: Settings, record: FeatureStoreRecord, view: FeatureViewRecord, now: datetime) -> datetime | None:
    """Event time of the view's newest row, computed or pushed."""
    pushed = [source for source in record.sources if source.table == f"{view.table.table}{PUSHED}"]
    known = pl.col(EVENT_TIME).filter(pl.col(EVENT_TIME) <= now).max()
    times = [read(settings, table).select(known).collect().item() for table in (view.table, *pushed)]
    return max((at for at in times if at is not None), default=None)


def read_usage(settings: Settings, usecase: UseCase) -> Usage:
    """The use of the use case's features; the models are unknown when MLflow does not answer."""
    predictions, log = _predictions(settings, usecase)
    try:
        return Usage(_model_columns(settings, usecase), None, predictions, log)
    except ThroughlineError as error:
        return Usage(None, str(error), predictions, log)


def _model_columns(settings: Settings, usecase: UseCase) -> dict[ModelReference, frozenset[str]]:
    """The columns of the dataset of each model version. Raises when MLflow does not answer or a dataset is gone."""
    tables = dataset_tables(settings, usecase.name)
    columns = {}
    for table in set(tables.values()):
        fields = open_table(settings.lakehouse / table.table, table.version).schema().fields
        columns[table] = frozenset(field.name for field in fields)
    return {model: columns[table] for model, table in sorted(tables.items())}


def _predictions(
    settings: Settings, usecase: UseCase
) -> tuple[list[tuple[int, frozenset[str]]], TableReference | None]:
    """Number of predictions and features per model version, whose predictions all use the same features."""
    location = settings.table_path(usecase.name, LAYER, TABLE)
    version = current_version(location)
    if version is None:
        return [], None
    rows = production(scan(location, version))
    model = ["model_name", "model_version"]
    groups = []
    for *which, count in rows.group_by(model).len().collect().iter_rows():
        mine = [pl.col(name) == value for name, value in zip(model, which, strict=True)]
        sample: Any = json.loads(rows.filter(mine).select("features").head(1).collect().item())
        groups.append((count, frozenset(sample)))
    return groups, log_table(usecase.name, version)
