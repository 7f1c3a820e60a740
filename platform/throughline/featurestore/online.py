"""Features of live requests: from entity keys to a row per request, out of the online store.

Owns: the lookup and its cache, which entities are unknown, which rows are absent or expired, the age of each value.
Does not own: the store's format (`online_format.py`), what becomes of an unknown entity (the model's handling of
missing values).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from throughline.featurestore.online_format import (
    DUMMY_KEY,
    OnlineRows,
    OnlineView,
    Row,
    encode_keys,
    load_views,
    open_rows,
)
from throughline.featurestore.request_features import load_derive, request_features
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase
from throughline.usecase.requests import Columns, request_frame

if TYPE_CHECKING:
    import polars as pl

_SNAPSHOTS = 3  # reads that are begun again because the store was written meanwhile


class StoredRow:
    """A row of a view: its event time (UTC), its values by feature (None: none), and for models:

    vector: the values as float64 [features] in the view's order, NaN for none and for what is no number;
    texts:  the features whose value is no number.
    """

    __slots__ = ("at", "texts", "values", "vector")

    def __init__(self, row: Row, view: OnlineView) -> None:
        self.at, self.values = row
        held = [self.values[name] for name in view.features]
        self.texts = {name for name, value in zip(view.features, held, strict=True) if not _is_number(value)}
        numbers = [np.nan if value is None or not _is_number(value) else value for value in held]
        self.vector = np.array(numbers, np.float64)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


class ViewReader:
    """Reads rows of views by the values of their join keys; safe to use from several threads.

    Up to `cached` rows are kept. They are dropped when the store was written since: its version is looked at in each
    read. All rows of a read are of one version, where the store has versions.
    """

    def __init__(self, rows: OnlineRows, views: Sequence[OnlineView], cached: int) -> None:
        self._rows = rows
        self._views = views
        self._keys = [sorted(view.keys) for view in views]
        self._own_keys = [[name for name in names if name != DUMMY_KEY] for names in self._keys]
        self._size = cached
        self._cache: tuple[Any, list[dict[tuple[Any, ...], StoredRow | None]]] = (None, [])

    def read(self, entities: Mapping[str, Sequence[Any]], count: int) -> list[list[StoredRow | None]]:
        """Per view, the rows of `count` entities, given as that many values per join key."""
        if count == 1 and (kept := self._kept(entities)) is not None:
            return kept
        wanted = [
            list(zip(*(entities[name] if name != DUMMY_KEY else [""] * count for name in names), strict=True))
            for names in self._keys
        ]
        for _ in range(_SNAPSHOTS):
            version = self._rows.version() if self._size else None
            held = self._held(version)
            missing = [
                [key for key in dict.fromkeys(keys) if key not in known]
                for keys, known in zip(wanted, held, strict=True)
            ]
            if any(missing):
                self._fetch(missing, held)
                if version is not None and self._rows.version() != version:
                    continue
            break
        return [[known[key] for key in keys] for keys, known in zip(wanted, held, strict=True)]

    def _kept(self, entities: Mapping[str, Sequence[Any]]) -> list[list[StoredRow | None]] | None:
        """The rows of one entity when all of them are kept and of the store's version."""
        version, held = self._cache
        if version is None or self._rows.version() != version:
            return None
        try:
            return [
                [known[tuple([entities[name][0] for name in names]) or ("",)]]
                for names, known in zip(self._own_keys, held, strict=True)
            ]
        except KeyError:
            return None

    def _held(self, version: Any) -> list[dict[tuple[Any, ...], StoredRow | None]]:
        """What is known of the store at this version; nothing without one."""
        known_of, held = self._cache
        if version is None or known_of != version or sum(map(len, held)) > self._size:
            held = [{} for _ in self._views]
            self._cache = version, held
        return held

    def _fetch(self, missing: list[list[tuple[Any, ...]]], held: list[dict[tuple[Any, ...], StoredRow | None]]) -> None:
        encoded = [
            encode_keys(view, {name: [key[n] for key in keys] for n, name in enumerate(names)})
            for view, names, keys in zip(self._views, self._keys, missing, strict=True)
        ]
        wanted = [(view, [key for key in keys if key]) for view, keys in zip(self._views, encoded, strict=True)]
        fetched = self._rows.fetch(wanted)
        for view, keys, stored, found, known in zip(self._views, missing, encoded, fetched, held, strict=True):
            for key, name in zip(keys, stored, strict=True):
                row = found.get(name) if name else None
                known[key] = StoredRow(row, view) if row else None


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
    rows: OnlineRows, views: Sequence[OnlineView], entities: Mapping[str, Sequence[Any]], at: datetime
) -> StoredFeatures:
    """Read views for N entities, given by join key; ages are judged at `at` (UTC)."""
    count = len(next(iter(entities.values())))
    stored = StoredFeatures({}, {}, {}, {})
    for view, held in zip(views, ViewReader(rows, views, 0).read(entities, count), strict=True):
        stored.there[view.name] = [row is not None for row in held]
        if view.ttl:
            stored.expired[view.name] = [row is not None and is_expired(view, row, at) for row in held]
        usable = [None if row is None or is_expired(view, row, at) else row for row in held]
        stored.event_times[view.name] = [None if row is None else row.at for row in usable]
        for name in view.features:
            stored.values[name] = [None if row is None else row.values[name] for row in usable]
    return stored


def is_expired(view: OnlineView, row: StoredRow, at: datetime) -> bool:
    """Whether a row is older at `at` than its view's ttl."""
    return view.ttl is not None and row.at < at - view.ttl


class _Layout:
    """Where each value of a read lies: the views' vectors one after the other, then the request's own numbers."""

    def __init__(self, views: Sequence[OnlineView], own: Sequence[str]) -> None:
        stored = [name for view in views for name in view.features]
        self.blank = [np.full(len(view.features), np.nan) for view in views]
        self.views: dict[str, int] = {name: n for n, view in enumerate(views) for name in view.features}
        self._places = {name: len(stored) + n for n, name in enumerate(own)} | {n: at for at, n in enumerate(stored)}
        self._orders: dict[tuple[str, ...], np.ndarray] = {}
        self._own: dict[tuple[str, ...], list[str]] = {}

    def own(self, names: tuple[str, ...]) -> list[str]:
        """Those of the names that no view has."""
        own = self._own.get(names)
        if own is None:
            own = self._own[names] = [name for name in names if name not in self.views]
        return own

    def order(self, names: tuple[str, ...]) -> np.ndarray:
        """The places of these features. Raises `ThroughlineError` for one that there is not."""
        order = self._orders.get(names)
        if order is None:
            if absent := [name for name in names if name not in self._places]:
                raise ThroughlineError(
                    f"Feature(s) {', '.join(absent)} are neither in a registered view nor numbers of the request: "
                    "the feature service and the model must be of the same version."
                )
            order = self._orders[names] = np.array([self._places[name] for name in names], np.intp)
        return order


class FeatureRead:
    """Features of N requests, in their order: those of the request, those computed from it, and the stored ones."""

    def __init__(
        self,
        usecase: UseCase,
        views: Sequence[OnlineView],
        layout: _Layout,
        columns: Columns,
        derived: Mapping[str, list[float]],
        held: Sequence[Sequence[StoredRow | None]],
        at: datetime,
    ) -> None:
        self.rows = len(next(iter(columns.values())))
        self._usecase = usecase
        self._views = views
        self._layout = layout
        self._own: dict[str, Sequence[Any]] = {**columns, **derived}
        self._numbers = [*derived.values(), *(columns[name] for name in _numeric_fields(usecase))]
        self._held = held
        self._usable = [
            rows if view.ttl is None else [None if row is None or is_expired(view, row, at) else row for row in rows]
            for view, rows in zip(views, held, strict=True)
        ]

    def flags(self, row: int) -> list[str]:
        """What a request's score lacks: `unknown_entity:ENTITY` without a row in any view, `default:VIEW` without a row
        though its entities are known, `expired:VIEW` with a row that is too old to be used."""
        lost = [n for n, rows in enumerate(self._usable) if rows[row] is None]
        if not lost:
            return []
        here = [rows[row] is not None for rows in self._held]
        known = {name for view, there in zip(self._views, here, strict=True) if there for name in view.entities}
        flags = [f"unknown_entity:{name}" for name in self._usecase.entities if name not in known]
        absent = [self._views[n] for n in lost if not here[n]]
        flags += [f"default:{view.name}" for view in absent if known.issuperset(view.entities)]
        return flags + [f"expired:{self._views[n].name}" for n in lost if here[n]]

    def event_times(self, row: int) -> dict[str, datetime | None]:
        """Per view, when the row that was used happened (UTC); None without one."""
        return {
            view.name: held.at if (held := rows[row]) is not None else None
            for view, rows in zip(self._views, self._usable, strict=True)
        }

    def column(self, name: str) -> Sequence[Any]:
        """A value per request; None: none. Raises `KeyError`."""
        place = self._layout.views.get(name)
        if place is None:
            return self._own[name]
        return [None if row is None else row.values[name] for row in self._usable[place]]

    def values(self, row: int, names: tuple[str, ...]) -> dict[str, Any]:
        """Features by name of one request."""
        found = dict.fromkeys(names)
        for rows in self._usable:
            if (held := rows[row]) is not None:
                found.update(held.values)
        own = self._own
        for name in self._layout.own(names):
            found[name] = own[name][row]
        return found if len(found) == len(names) else {name: found[name] for name in names}

    def matrix(self, names: tuple[str, ...]) -> np.ndarray:
        """Numbers as float64 [requests, names], NaN: none. Raises `ThroughlineError` for a name that there is not, and
        for a feature that holds text."""
        order = self._layout.order(names)
        own = [[np.nan if value is None else value for value in values] for values in self._numbers]
        tails = np.array(own, np.float64).reshape(len(own), self.rows).T
        flat = []
        for n, tail in enumerate(tails):
            parts = []
            for rows, blank in zip(self._usable, self._layout.blank, strict=True):
                row = rows[n]
                if row is not None and row.texts and (texts := row.texts.intersection(names)):
                    raise ThroughlineError(
                        f"Feature {min(texts)} has a value of the wrong type: numeric features are numbers."
                    )
                parts.append(blank if row is None else row.vector)
            parts.append(tail)
            flat.append(np.concatenate(parts)[order])
        return np.stack(flat) if len(flat) > 1 else flat[0].reshape(1, -1)

    def names(self) -> Iterator[str]:
        """All features and request fields."""
        yield from self._own
        yield from self._layout.views

    @cached_property
    def frame(self) -> pl.DataFrame:
        """All of them: the request's columns typed as declared, then the features."""
        import polars as pl  # postpones polars, which answering a request does not need

        features = {name: self.column(name) for name in self.names() if name not in self._usecase.request}
        return request_frame(self._usecase, self._own).hstack(pl.DataFrame(features, strict=False).fill_nan(None))


def _numeric_fields(usecase: UseCase) -> list[str]:
    return [name for name, field in usecase.request.items() if field.type in ("integer", "number")]


class FeatureReader:
    """Reads the online store of one use case; raises when nothing was registered or materialised yet.

    Reading is thread-safe; `reload` replaces the definitions in one step.
    """

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        self._settings = settings
        self._usecase = usecase
        self._clock = data_clock(settings, usecase.clock_start(settings))
        self._derive = load_derive(usecase)
        self._keys = list(dict.fromkeys(usecase.entities.values()))
        self.reload()

    def reload(self) -> None:
        """Take the definitions as they are registered now."""
        self.take(open_rows(self._settings, self._usecase.name), load_views(self._settings, self._usecase.name))

    def take(self, rows: OnlineRows, views: Sequence[OnlineView]) -> None:
        """Read these views from this store."""
        self.near = rows.near
        nothing: Columns = {name: [] for name in self._usecase.request}
        own = [*request_features(self._derive, self._usecase, nothing), *_numeric_fields(self._usecase)]
        self._state = ViewReader(rows, views, self._settings.feature_cache), views, _Layout(views, own)

    def read(self, columns: Columns, at: datetime | None = None) -> FeatureRead:
        """Features of the columns of requests (`throughline.usecase.requests`).

        A value older than its view's ttl is none, as offline; its age is judged at `at`, or else on the data clock.
        """
        reader, views, layout = self._state
        held = reader.read(columns, len(columns[self._keys[0]]))
        derived = request_features(self._derive, self._usecase, columns)
        return FeatureRead(self._usecase, views, layout, columns, derived, held, at or self._clock.now())
