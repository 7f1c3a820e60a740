"""Pushes rows of a feature view: to the table of pushed rows, then online, in one call.

After a crash between the two, the next materialisation writes the rows online. A row is known from the instant of its
push, on the data clock.

Owns: what a pushed row must be, and both writes. Does not own: how the tables are read (`pushed.py`), transport.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from feast import FeatureView

from throughline.featurestore.delta_source import source_of
from throughline.featurestore.layout import KNOWN, PUSHED, registry_file
from throughline.featurestore.materialise import OnlineWriter, join_keys, newest_of, online_lock, to_rows
from throughline.featurestore.pushed import with_pushed
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.delta import create, find, refusals
from throughline.lakehouse.table import DAY, RUN_ID
from throughline.usecase import UseCase

Rows = pl.DataFrame | Sequence[dict[str, Any]]
# A commit takes longer the more files there are: 3 ms at first, 30 after 400 pushes, 6 when they are compacted.
COMPACT_EVERY = 100
_UTC = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Pushed:
    """The result of a push: number of rows, the table version with them, and their knowledge time (UTC)."""

    view: str
    rows: int
    table: TableReference
    known_at: datetime


class Pusher:
    """Pushes to the views of a use case; reads the registry again when it has changed."""

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        self._settings = settings
        self._usecase = usecase
        self._clock = data_clock(settings, usecase.clock_start(settings))
        self._registry = registry_file(settings, usecase)
        self._opened: tuple[int, OnlineWriter] | None = None
        self._tables: dict[str, DeltaTable] = {}

    def push(self, view: str, rows: Rows) -> Pushed:
        """Write rows offline and online.

        view: its name, or that of its source or push source. rows: every join key and feature of the view (a feature
        may be null), and `event_timestamp` with a time zone (now, when left out). Of several rows of one entity and
        event time the last counts, over all calls. A row older than the one online is written offline only. Raises,
        with nothing written, for a malformed row or one that happened after the data clock.
        """
        with online_lock(self._settings, self._usecase):
            writer = self._writer()
            found = _view_of(writer, view)
            now = self._clock.now()
            frame = typed_rows(found, writer.schema(found), rows, now)
            version = self._write(writer, found, frame, now)
            source = source_of(found)
            found.batch_source = with_pushed(source, version)
            data = to_rows(found, frame)
            writer.online.online_write_batch(writer.config, found, data, None)
            if held := writer.state(found.name):
                writer.save_state(found.name, held.with_newest(max(newest_of(data), held.age)))
            return Pushed(found.name, frame.height, writer.pin(f"{source.path}{PUSHED}", version), now)

    def _writer(self) -> OnlineWriter:
        try:
            stamp = self._registry.stat().st_mtime_ns
        except FileNotFoundError:
            raise ThroughlineError(
                f"No feature view of {self._usecase.name} is registered in this home: run `throughline run` first."
            ) from None
        if self._opened is None or self._opened[0] != stamp:
            self._opened = stamp, OnlineWriter(self._settings, self._usecase)
        return self._opened[1]

    def _write(self, writer: OnlineWriter, view: FeatureView, frame: pl.DataFrame, now: datetime) -> int:
        """Returns the version of the table of pushed rows with these rows."""
        source, last = source_of(view), writer.last_push(view.name)
        writer.save_last_push(view.name, now)
        rows = frame.rename({name: source.column(name) for name in frame.columns}).with_columns(
            pl.lit(f"push-{uuid.uuid4()}").alias(RUN_ID),
            pl.lit(self._usecase.local_day(now)).alias(DAY),
        )
        # a data clock that has not moved since the last push: the same row may have been pushed at this instant before
        repeated = last is None or last >= now
        keys = [source.column(name) for name in (*join_keys(view), source.timestamp_field, KNOWN)]
        return self._add(f"{source.path}{PUSHED}", rows, keys if repeated else None)

    def _add(self, path: str, rows: pl.DataFrame, keys: list[str] | None) -> int:
        """Append rows in one commit, or with `keys` replace the rows that have the same; returns the new version.

        Tables stay open, because reading a table's log takes longer than the rest of a push.
        """
        table = self._tables.pop(path, None) or find(path)
        if table is None:
            return create(path, rows, partition_by=[DAY])
        with refusals(path):
            if keys is None:
                new = set(rows.columns) - {field.name for field in table.schema().fields}
                write_deltalake(table, rows.to_arrow(), mode="append", schema_mode="merge" if new else None)
            else:
                table.update_incremental()
                same = " AND ".join(f'old."{key}" = new."{key}"' for key in (*keys, DAY))
                merge = table.merge(rows.to_arrow(), same, source_alias="new", target_alias="old", merge_schema=True)
                merge.when_matched_update_all().when_not_matched_insert_all().execute()
        self._tables[path] = table
        version = table.version()
        if version % COMPACT_EVERY == 0:
            # a conflict with other maintenance does not undo the write
            with contextlib.suppress(DeltaError):
                table.optimize.compact()
        return version


def typed_rows(view: FeatureView, schema: pl.Schema, rows: Rows, now: datetime) -> pl.DataFrame:
    """The rows in the types of the view's table, by Feast's names, known at `now` (UTC). Raises naming the fault."""
    source = source_of(view)
    keys, event = join_keys(view), source.timestamp_field
    names = [*keys, *(feature.name for feature in view.features)]
    given = rows if isinstance(rows, pl.DataFrame) else _as_frame(rows)
    if not keys:
        raise ThroughlineError(f"View {view.name} has no entity: rows are pushed for entities only.")
    if given.is_empty():
        raise ThroughlineError(f"No row to push to {view.name}: give at least one.")
    missing, unknown = sorted(set(names) - set(given.columns)), sorted(set(given.columns) - {*names, event})
    if missing or unknown:
        wrong = [f"lack {', '.join(missing)}"] * bool(missing) + [f"have unknown {', '.join(unknown)}"] * bool(unknown)
        raise ThroughlineError(
            f"Rows for {view.name} {' and '.join(wrong)}: give {', '.join(names)} and, unless it is now, {event}."
        )
    columns: dict[str, Any] = {name: _cast(view.name, given[name], schema[source.column(name)]) for name in names}
    columns[event] = _instants(view.name, given[event]) if event in given.columns else pl.lit(now, _UTC)
    frame = given.select(**columns, **{KNOWN: pl.lit(now, _UTC)})
    if gaps := [name for name in (*keys, event) if frame[name].has_nulls()]:
        raise ThroughlineError(f"A row for {view.name} has no {gaps[0]}: nothing was written.")
    newest: Any = frame[event].max()
    if newest > now:
        raise ThroughlineError(
            f"A row for {view.name} happened at {newest.isoformat()}, after the data clock ({now.isoformat()}): "
            "nothing was written."
        )
    return frame.unique([*keys, event], keep="last", maintain_order=True)


def _as_frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame({name: pl.Series([row.get(name) for row in rows], strict=False) for name in names})


def _cast(view: str, values: pl.Series, kind: pl.DataType) -> pl.Series:
    try:
        return values.cast(kind)
    except pl.exceptions.PolarsError:
        raise ThroughlineError(f"{values.name} of a row for {view} is no {kind}: nothing was written.") from None


def _instants(view: str, values: pl.Series) -> pl.Series:
    """As UTC. Text is ISO 8601."""
    given = values.to_list()
    try:
        given = [datetime.fromisoformat(value) if isinstance(value, str) else value for value in given]
        if any(value is not None and value.tzinfo is None for value in given):
            raise ValueError
    except (ValueError, AttributeError):
        raise ThroughlineError(
            f"{values.name} of a row for {view} is no instant: give a time with its zone, such as 2013-04-01T09:00:00Z."
        ) from None
    return pl.Series([value and value.astimezone(UTC) for value in given], dtype=_UTC)


def _view_of(writer: OnlineWriter, name: str) -> FeatureView:
    for view in writer.views:
        sources = {source_of(view).name, view.stream_source.name if view.stream_source else None}
        if name == view.name or name in sources:
            return view
    raise ThroughlineError(
        f"No feature view or source {name}: there are {', '.join(sorted(v.name for v in writer.views))}."
    )
