"""The inference log as a Delta table: appended exactly once by id, counted per source.

Owns: `lakehouse/<usecase>/monitoring/inference_log`, of which one process is the only writer.
Does not own: receiving events (`collector`), joining them with outcomes.

Known ids are kept in memory per day, read from the table when a day is first written to, and rows are appended. A
MERGE reads the ids of the day at each batch: 55 against 18 ms for 500 rows into a day of 50,000 (measured).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from datetime import date
from uuid import UUID

import polars as pl
from deltalake import write_deltalake

from throughline.events.schema import InferenceEvent, to_rows
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, open_table, replace_days, rows_of

LAYER, TABLE = "monitoring", "inference_log"
DAYS_IN_MEMORY = 8


class SourceCount:
    """What arrived from one server start, whose sequence numbers begin at 1."""

    def __init__(self) -> None:
        self.events = 0
        self.highest = 0

    def add(self, events: int, highest: int) -> None:
        self.events += events
        self.highest = max(self.highest, highest)

    @property
    def lost(self) -> int:
        """Numbers below the highest that never arrived (or are still on their way)."""
        return self.highest - self.events


class LogTable:
    """The table of one use case. Not thread-safe: one writer."""

    def __init__(self, settings: Settings, usecase: str) -> None:
        self._path = settings.table_path(usecase, LAYER, TABLE)
        self._days: OrderedDict[date, set[bytes]] = OrderedDict()
        self.sources: dict[str, SourceCount] = defaultdict(SourceCount)
        self.version: int | None = None
        self._table = None if current_version(self._path) is None else open_table(self._path)
        if self._table is not None:
            self.version = self._table.version()
            counted = self._scan().group_by("source").agg(pl.len(), pl.max("sequence")).collect()
            for source, events, highest in counted.iter_rows():
                self.sources[source].add(events, highest)

    @property
    def written(self) -> int:
        return sum(source.events for source in self.sources.values())

    def append(self, events: Sequence[InferenceEvent]) -> int:
        """Write those not in the table yet as one commit; returns how many these were."""
        fresh: dict[UUID, InferenceEvent] = {}
        for event in events:
            if event.id.bytes not in self._ids(event.day):
                fresh.setdefault(event.id, event)
        if not fresh:
            return 0
        rows = to_rows(fresh.values())
        if self._table is None:
            replace_days(self._path, rows, rows["day"].min(), rows["day"].max())
            self._table = open_table(self._path)
        else:
            write_deltalake(self._table, rows.to_arrow(), mode="append")
            self._table.update_incremental()
        self.version = self._table.version()
        for event in fresh.values():
            self._ids(event.day).add(event.id.bytes)
        self._forget_days()
        arrived = Counter(event.source for event in fresh.values())
        for source, count in arrived.items():
            highest = max(event.sequence for event in fresh.values() if event.source == source)
            self.sources[source].add(count, highest)
        return len(fresh)

    def _ids(self, day: date) -> set[bytes]:
        if day not in self._days:
            known = self._scan().filter(pl.col("day") == day).select("id").collect()["id"] if self._table else []
            self._days[day] = {UUID(text).bytes for text in known}
        self._days.move_to_end(day)
        return self._days[day]

    def _forget_days(self) -> None:
        while len(self._days) > DAYS_IN_MEMORY:
            self._days.popitem(last=False)

    def _scan(self) -> pl.LazyFrame:
        return rows_of(self._table)
