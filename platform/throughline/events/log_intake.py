"""The intake of events: from their receipt to the inference log of their use case.

Owns: which events are accepted, the counts of a home. Does not own: the journal between receipt and table
(`journal/intake.py`), the table (`table.py`), HTTP (`collector.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from throughline.events.schema import BadEvent, InferenceEvent, parse_line, to_line, to_rows
from throughline.events.table import LogTable, SourceCount
from throughline.foundation.settings import Settings
from throughline.journal.intake import Intake, counts


class LogIntake(Intake):
    """The inference log of one home. The table of an event is the one of its use case."""

    what = "The inference log"

    def __init__(self, settings: Settings, usecases: Iterable[str]) -> None:
        super().__init__(settings.serving_home / "spool" / "collector")
        self._settings = settings
        self._usecases = set(usecases)
        self._tables: dict[str, LogTable] = {}
        self._unread: set[str] = set()  # whose counts are unknown, as their table could not be read at the start
        self._counted: dict[str, dict[str, SourceCount]] = {}  # of each table as it was read or written last
        for usecase in sorted(self._usecases):
            self._open(usecase)

    async def receive(self, events: Sequence[InferenceEvent | BadEvent]) -> list[tuple[int, BadEvent]]:
        """Returns when the events are on the disk; those that are refused, with their positions."""
        refused, lines = [], []
        for position, event in enumerate(events):
            if isinstance(event, InferenceEvent) and event.subject not in self._usecases:
                event = BadEvent(f"subject: {event.subject[:80]} is not a declared use case", str(event.id))
            if isinstance(event, BadEvent):
                refused.append((position, event))
            else:
                lines.append(to_line(event))
        if lines:
            await self.confirm(lines)
        self.rejected += len(refused)
        return refused

    def parse(self, line: bytes) -> tuple[str, dict[str, Any]]:
        return parse_line(line)

    def to_rows(self, items: Sequence[dict[str, Any]]) -> pl.DataFrame:
        return to_rows(items)

    def append(self, table: str, rows: pl.DataFrame) -> int:
        try:
            return self._table(table).append(rows)
        except Exception:
            self._tables.pop(table, None)  # opened again at the next attempt: it may have been replaced
            raise

    def flush(self, now: bool = True) -> None:
        for usecase in sorted(self._unread):
            if now or self._due(usecase):
                self._open(usecase)
        super().flush(now)

    def write(self) -> dict[str, Any]:
        """Move everything confirmed so far to the tables: `version` of each, and by use case what `failed`."""
        self.flush()
        return {
            "version": {usecase: table.version for usecase, table in sorted(self._tables.items())},
            "failed": {table: failure.what for table, failure in self.failures.items()},
        }

    def status(self) -> dict[str, Any]:
        """Counts since the log began; duplicates and rejected since this start."""
        sources = self._sources()
        written = sum(count.events for count in sources.values())
        counted = counts(self)
        return {
            "received": written + counted["pending"] + counted["duplicates"] + counted["set_aside"],
            "written": written,
            "lost": sum(count.lost for count in sources.values()),
            **counted,
            "sources": {
                source: {"written": count.events, "highest": count.highest, "lost": count.lost}
                for source, count in sources.items()
            },
        }

    def _sources(self) -> dict[str, SourceCount]:
        """A server numbers the events of all its use cases together, so gaps are counted across the tables."""
        merged: dict[str, SourceCount] = defaultdict(SourceCount)
        for counted in list(self._counted.values()):
            for source, count in list(counted.items()):
                merged[source].add(count.events, count.highest)
        return dict(merged)

    def _open(self, usecase: str) -> None:
        try:
            self._table(usecase)
        except Exception as error:  # one table that cannot be read must not keep the others from being written
            self._unread.add(usecase)
            self._failed(usecase, error)
        else:
            self._unread.discard(usecase)
            self.failures.pop(usecase, None)

    def _table(self, usecase: str) -> LogTable:
        if usecase not in self._tables:
            self._tables[usecase] = LogTable(self._settings, usecase)
            self._counted[usecase] = self._tables[usecase].sources
        return self._tables[usecase]
