"""Where the features of a logged prediction came from: their row of a feature table, and the raw rows behind it.

Owns: finding a served row again, and which raw rows its table could see. Does not own: the other steps (`trace.py`).

The row is looked up by entity and event time in the version of its table at the time of the prediction, then in
neighbouring versions, and compared with what was served. The raw rows are those of its entity that the table could see
at that time, at the version that it was made from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any

import polars as pl

from throughline.events.schema import iso
from throughline.featurestore.layout import EVENT_TIME, KNOWN, LAYER, PUSHED
from throughline.featurestore.request_features import load_derive, request_features
from throughline.foundation.days import DAY
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY as PARTITION
from throughline.lineage.pinned import PinnedTables
from throughline.records import FeatureStoreRecord, FeatureViewRecord
from throughline.records.store import find_record
from throughline.usecase import UseCase
from throughline.usecase.requests import parse_columns

_TRIES = 3  # versions of a table that are searched for a served row, from that of the prediction backwards
_TICK = timedelta(hours=1)  # a row is seen from the first tick after it became known


@dataclass(frozen=True)
class RawRows:
    """Rows of a raw table that a feature row could see: their days, and what the trace shows of them."""

    table: TableReference
    days: set[date]
    facts: dict[str, Any]


@dataclass(frozen=True)
class ServedRow:
    """The row of a feature table that a prediction used; `matches`: it holds the values that were served."""

    view: FeatureViewRecord
    table: TableReference
    entity: dict[str, Any]
    row: dict[str, Any]
    matches: bool
    raw: list[RawRows] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "view": self.view.name,
            "entity": self.entity,
            "event_time": self.row[EVENT_TIME],
            "available_at": self.row.get(KNOWN),
            "ingestion_run_id": self.row.get("ingestion_run_id"),
            "matches": self.matches,
            "raw": [{"table": str(part.table), **part.facts} for part in self.raw],
        }


class ServedValues:
    """Finds where values of one use case came from; lists at most `raw_rows` per view and raw table."""

    def __init__(self, settings: Settings, usecase: UseCase, tables: PinnedTables, raw_rows: int) -> None:
        self._usecase = usecase
        self._tables = tables
        self._raw_rows = raw_rows
        self._derive = load_derive(usecase)
        store = find_record(settings, (usecase.name, LAYER, "feature_store"), FeatureStoreRecord)
        self._views = store.views if store else []

    def of(self, event: Mapping[str, Any]) -> tuple[list[ServedRow], list[dict[str, Any]]]:
        """The rows behind the logged features, and each feature: name, value, view, event_time, table, upstream.

        `missing` is why the origin of a feature is unknown, `note` why it is in no table.
        """
        values, times = event["features"], event["feature_times"]
        features: dict[str, dict[str, Any]] = {}
        rows = []
        for view in self._views:
            mine = {feature.name: feature.upstream for feature in view.features if feature.name in values}
            if not mine:
                continue
            at = datetime.fromisoformat(times[view.name]) if times.get(view.name) else None
            if at is None:
                origin = {"note": "no row of this entity was online, or it had expired"}
            else:
                try:
                    rows.append(self._row_of(event, view, at, {name: values[name] for name in mine}))
                    origin = {"table": str(rows[-1].table)}
                except ThroughlineError as error:
                    origin = {"missing": str(error)}
            for name, upstream in mine.items():
                features[name] = _feature(name, values[name], view.name, at, upstream=upstream, **origin)
        features |= self._from_request(event, values.keys() - features.keys())
        return rows, [features[name] for name in values]

    def _from_request(self, event: Mapping[str, Any], names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Features that are in the request or computed from it alone: computed once more, and compared."""
        values = event["features"]
        columns = parse_columns(self._usecase, [event["request"]])
        derived = columns | request_features(self._derive, self._usecase, columns)
        features = {}
        for name in names:
            if name not in derived:
                origin = {"missing": f"{name} is neither in a registered feature view nor in the request"}
            elif not _same(values[name], derived[name][0]):
                origin = {"missing": f"{name} was {values[name]}, and the request gives {derived[name][0]} now"}
            else:
                origin = {"note": "from the request"}
            features[name] = _feature(name, values[name], None, event["time"], **origin)
        return features

    # The row of a feature table

    def _row_of(
        self, event: Mapping[str, Any], view: FeatureViewRecord, at: datetime, values: Mapping[str, Any]
    ) -> ServedRow:
        """Raises one line when no version that can be read holds the row."""
        columns = [self._usecase.entities[name] for name in view.entities]
        entity = {column: event["request"][column] for column in columns}
        found, problem = None, ""
        for pinned in self._candidates(view, event["wall_time"]):
            try:
                row = self._row(pinned, entity, at)
            except ThroughlineError as error:
                problem = str(error)
                continue
            if row is not None:
                matches = all(name in row and _same(value, row[name]) for name, value in values.items())
                served = ServedRow(view, pinned, entity, row, matches)
                if matches:
                    return replace(served, raw=self._raw(served, at))
                found = found or served
        if found:
            return found
        who = ", ".join(f"{key} {value}" for key, value in entity.items())
        raise ThroughlineError(problem or f"no version of {view.table.table} holds the row of {who} at {iso(at)}")

    def _candidates(self, view: FeatureViewRecord, at: datetime) -> list[TableReference]:
        """Where a row served at an instant (wall clock) may be, the likeliest first."""
        table = view.table.table
        # of a computed and a pushed row with one event time the pushed one was served
        pushed, computed = (self._tables.at(name, at) for name in (f"{table}{PUSHED}", table))
        return list(dict.fromkeys([*pushed[:_TRIES], *computed[:_TRIES], view.table]))

    def _row(self, pinned: TableReference, entity: Mapping[str, Any], at: datetime) -> dict[str, Any] | None:
        if pinned.table.endswith(PUSHED):
            rows = self._tables.rows(pinned)  # its days are those of the push
        else:
            day = self._usecase.local_day(at)
            rows = self._tables.rows(pinned, day - DAY, day)  # midnight's belongs to the day before
        mine = rows.filter(pl.col(EVENT_TIME) == _literal(at), *(pl.col(key) == value for key, value in entity.items()))
        return mine.row(-1, named=True) if mine.height else None

    # The raw rows behind it

    def _raw(self, served: ServedRow, at: datetime) -> list[RawRows]:
        """Per raw table that decides a feature of the view: the entity's rows that it could see at `at`.

        A pushed row came from its caller: from no raw table.
        """
        columns: dict[str, set[str]] = {}
        for source in {source for feature in served.view.features for source in feature.upstream or ()}:
            table, _, column = source.partition(".")
            columns.setdefault(table, set()).add(column)
        pins = {pinned.name: pinned for pinned in self._tables.made_from(served.table) or ()}
        there = pins.keys() & self._usecase.sources.tables.keys()
        return [self._raw_of(pins[name], served, at, read) for name, read in sorted(columns.items()) if name in there]

    def _raw_of(self, pinned: TableReference, served: ServedRow, at: datetime, read: set[str]) -> RawRows:
        declared = self._usecase.sources.tables[pinned.name]
        within = served.view.seen_within
        start = None if declared.static or within is None else at - within - _TICK
        end = None if declared.static else at
        rows = self._tables.rows(pinned, *(instant and self._usecase.local_day(instant) for instant in (start, end)))
        keys = [key for key in served.entity if key in rows.columns]
        wanted = [pl.col(key) == served.entity[key] for key in keys]
        wanted += [pl.col(KNOWN) >= _literal(start)] if start else []
        wanted += [pl.col(KNOWN) < _literal(end)] if end else []  # a computed row knows what came before its instant
        mine = rows.lazy().filter(wanted).sort(KNOWN, descending=True).collect()
        always = [*declared.key, "event_time", KNOWN, PARTITION, "ingestion_run_id"]
        shown = [column for column in dict.fromkeys([*always, *sorted(read)]) if column in rows.columns]
        facts = {
            "columns": sorted(read),
            "matched_by": keys,
            "known_from": start,
            "known_before": end,
            "of": mine.height,
            "rows": mine[shown].head(self._raw_rows).to_dicts(),
        }
        return RawRows(pinned, set(mine[PARTITION].to_list()) if PARTITION in mine.columns else set(), facts)


def _feature(name: str, value: Any, view: str | None, at: datetime | None, **origin: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "view": view, "event_time": at, "table": None, "upstream": None, **origin}


@lru_cache(maxsize=4096)
def _literal(instant: datetime) -> pl.Expr:
    """Cached: Polars takes half a millisecond for an instant with a time zone, and a trace compares with dozens."""
    return pl.lit(instant)


def _same(one: Any, other: Any) -> bool:
    """Whether a logged value is this one: JSON has no NaN, no instants and no 32-bit floats."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(other, datetime):
        return one == iso(other)
    return one == (None if isinstance(other, float) and math.isnan(other) else other)
