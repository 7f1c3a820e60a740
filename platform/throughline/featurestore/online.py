"""Features of live requests: from entity keys to a row per request, out of the online store.

Owns: the lookup, which entities are unknown, which rows are expired, and how old each value is. Does not own: the
store's format (`online_format.py`), what becomes of an unknown entity (the model's handling of missing values).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from throughline.featurestore.online_format import DUMMY_KEY, OnlineRows, OnlineView, encode_keys, load_views, open_rows
from throughline.foundation.clock import data_clock
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase, load_object


@dataclass(frozen=True)
class FeatureRead:
    """Features of N requests, in their order.

    values:      N rows: the request's own columns, request-time features and a column per stored feature (null: none).
    event_times: per feature view, N instants (UTC): when the row that was used happened; None where there is none.
    unknown:     per request, the entities for which the store has no row in any view.
    expired:     per feature view with a ttl, N flags: there is a row, but it is too old to be used.
    """

    values: pl.DataFrame
    event_times: dict[str, list[datetime | None]]
    unknown: list[list[str]]
    expired: dict[str, list[bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredFeatures:
    """What the online store holds for N entities: a list of N per feature and, else, per view.

    there: the store has a row; expired: it is older than the view's ttl, and gives neither values nor an event time.
    """

    values: dict[str, list[Any]]
    event_times: dict[str, list[datetime | None]]
    there: dict[str, list[bool]]
    expired: dict[str, list[bool]]


def look_up(
    rows: OnlineRows,
    views: Sequence[OnlineView],
    entities: Mapping[str, Sequence[Any]],
    at: datetime,
) -> StoredFeatures:
    """Read views for N entities, given by join key; ages are judged at `at` (UTC)."""
    count = len(next(iter(entities.values())))
    keys = [encode_keys(view, {DUMMY_KEY: [""] * count, **entities}) for view in views]
    wanted = [(view, [key for key in dict.fromkeys(mine) if key]) for view, mine in zip(views, keys, strict=True)]
    stored = StoredFeatures({}, {}, {}, {})
    for view, mine, found in zip(views, keys, rows.fetch(wanted), strict=True):
        held = [found.get(key) if key else None for key in mine]
        stored.there[view.name] = [row is not None for row in held]
        if view.ttl:
            oldest = at - view.ttl
            stored.expired[view.name] = [row is not None and row[0] < oldest for row in held]
            held = [None if row is None or row[0] < oldest else row for row in held]
        stored.event_times[view.name] = [row and row[0] for row in held]
        for name in view.features:
            stored.values[name] = [row and row[1][name] for row in held]
    return stored


class FeatureReader:
    """Reads the online store of one use case; raises when nothing was registered or materialised yet.

    Reading is thread-safe; `reload` replaces the definitions in one step.
    """

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        self._settings = settings
        self._usecase = usecase
        self._clock = data_clock(settings, usecase.clock_start(settings))
        self._derive = load_object(usecase.features.request_features)
        self.reload()

    def reload(self) -> None:
        """Take the definitions as they are registered now."""
        name = self._usecase.name
        self._state = open_rows(self._settings, name), load_views(self._settings, name)

    def read(self, requests: pl.DataFrame, at: datetime | None = None) -> FeatureRead:
        """Features of typed requests (columns as declared under `request`, timestamps in UTC).

        A value older than its view's ttl is none, as offline; its age is judged at `at`, or else on the data clock.
        """
        rows, views = self._state
        entities = {name: requests[name].to_list() for name in dict.fromkeys(self._usecase.entities.values())}
        stored = look_up(rows, views, entities, at or self._clock.now())
        unknown: list[list[str]] = [[] for _ in range(requests.height)]
        for entity in self._usecase.entities:
            seen = [stored.there[view.name] for view in views if entity in view.entities]
            for n, names in enumerate(unknown):
                if not any(flags[n] for flags in seen):
                    names.append(entity)
        values = self._derive(requests).hstack(pl.DataFrame(stored.values, strict=False))
        return FeatureRead(values, stored.event_times, unknown, stored.expired)
