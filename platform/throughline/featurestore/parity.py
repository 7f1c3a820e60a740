"""Online values of sampled entities against their offline values at the same instant.

Owns: the comparison and its verdict. Each side is read as it is used: online as by a request, offline by the
point-in-time join of training datasets. Does not own: making them equal again (`materialise.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pandas as pd
import polars as pl
from feast import FeatureView
from feast.types import from_feast_to_pyarrow_type

from throughline.featurestore.delta_source import source_of
from throughline.featurestore.delta_store import DeltaOfflineStore
from throughline.featurestore.layout import EVENT_TIME
from throughline.featurestore.materialise import OnlineWriter, join_keys, online_writer
from throughline.featurestore.online import look_up
from throughline.featurestore.polars_engine import scan
from throughline.featurestore.store import online_view
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase

Entity = dict[str, Any]
Values = dict[str, Any]


@dataclass(frozen=True)
class Mismatch:
    """One feature of one entity that differs; None: no value."""

    view: str
    entity: Entity
    feature: str
    online: Any
    offline: Any


@dataclass(frozen=True)
class ViewParity:
    """The comparison of one view at an instant (UTC): entities, and values that at least one side has."""

    view: str
    at: datetime | None
    entities: int
    values: int
    mismatches: list[Mismatch]

    @property
    def verdict(self) -> Literal["equal", "different", "cannot_say"]:
        """`cannot_say` when nothing was compared."""
        if self.mismatches:
            return "different"
        return "equal" if self.values else "cannot_say"

    @property
    def reason(self) -> str:
        if self.at is None:
            return "no state is recorded: the view was never materialised, or a write was cut short"
        if self.mismatches:
            one = self.mismatches[0]
            return (
                f"{len(self.mismatches)} of {self.values} values differ, first {one.feature} of "
                f"{', '.join(map(str, one.entity.values()))}: {one.online} online, {one.offline} offline"
            )
        return f"{self.values} values of {self.entities} entities compared" if self.values else "no value to compare"


def compare(
    view: str, at: datetime, entities: Sequence[Entity], online: Sequence[Values], offline: Sequence[Values]
) -> ViewParity:
    """Compare values of entities, both sides in the order of `entities`. A NaN is a missing value, as it is online."""
    mismatches, compared = [], 0
    for entity, served, trained in zip(entities, online, offline, strict=True):
        for feature in trained:
            ours, theirs = _value(served[feature]), _value(trained[feature])
            compared += ours is not None or theirs is not None
            if ours != theirs:
                mismatches.append(Mismatch(view, entity, feature, ours, theirs))
    return ViewParity(view, at, len(entities), compared, mismatches)


def _value(value: Any) -> Any:
    return None if value != value else value


def draw(entities: Sequence[Entity], size: int, seed: int) -> list[Entity]:
    """At most `size` of the entities; the same ones for the same entities and seed, in any order."""
    ordered = sorted(entities, key=lambda entity: [str(value) for value in entity.values()])
    return random.Random(seed).sample(ordered, min(size, len(ordered)))


def check_parity(settings: Settings, usecase: UseCase) -> list[ViewParity]:
    """Compare every view that is online, under the writers' lock; entities are those of either side."""
    declared = usecase.online.parity
    with online_writer(settings, usecase) as writer:
        return [_parity_of(writer, view, declared.entities, declared.seed) for view in writer.views]


def _parity_of(writer: OnlineWriter, view: FeatureView, size: int, seed: int) -> ViewParity:
    held = writer.state(view.name)
    if held is None:
        return ViewParity(view.name, None, 0, 0, [])
    # rows pushed since the last materialisation are online, too
    at = max(filter(None, (held.until, writer.last_push(view.name))))
    entities = draw(_entities(writer, view, at), size, seed)
    if not entities:
        return ViewParity(view.name, at, 0, 0, [])
    return compare(view.name, at, entities, _online(writer, view, entities, at), _offline(writer, view, entities, at))


def _entities(writer: OnlineWriter, view: FeatureView, at: datetime) -> list[Entity]:
    source = source_of(view)
    columns = {name: source.column(name) for name in join_keys(view)}
    if not columns:
        return [{}]
    rows = scan(source).filter(pl.col(source.event_column) <= at)
    known = rows.select(**{name: pl.col(column) for name, column in columns.items()}).drop_nulls().unique().collect()
    held = [
        {
            name: getattr(value, value.WhichOneof("val"))
            for name, value in zip(k.join_keys, k.entity_values, strict=True)
        }
        for k in writer.online.entity_keys(writer.config, view)
    ]
    return list({tuple(entity[name] for name in columns): entity for entity in [*held, *known.to_dicts()]}.values())


def _online(writer: OnlineWriter, view: FeatureView, entities: list[Entity], at: datetime) -> list[Values]:
    names = [feature.name for feature in view.features]
    read = online_view(view, names)
    columns = {key: [entity.get(key, "") for entity in entities] for key in read.keys}  # "" for a view without keys
    stored = look_up(writer.rows, [read], columns, at)
    return [{name: stored.values[name][n] for name in names} for n in range(len(entities))]


def _offline(writer: OnlineWriter, view: FeatureView, entities: list[Entity], at: datetime) -> list[Values]:
    joined = DeltaOfflineStore.get_historical_features(
        writer.config,
        [view],
        [f"{view.name}:{feature.name}" for feature in view.features],
        pd.DataFrame([{**entity, EVENT_TIME: pd.Timestamp(at)} for entity in entities]),
        writer.store.registry,
        writer.store.project,
        filter_by_created_timestamp=True,
    ).to_arrow()
    # online, a value has the type that the view declares
    columns = {f.name: joined[f.name].cast(from_feast_to_pyarrow_type(f.dtype)).to_pylist() for f in view.features}
    return [{name: values[n] for name, values in columns.items()} for n in range(len(entities))]
