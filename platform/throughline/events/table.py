"""The inference log as a Delta table: appended exactly once by id, counted per source.

Owns: `lakehouse/<usecase>/monitoring/inference_log`, of which one process is the only writer.
Does not own: receiving events (`collector.py`), joining them with outcomes.
"""

from __future__ import annotations

from collections import defaultdict

import polars as pl

from throughline.events.schema import LAYER, TABLE
from throughline.foundation.settings import Settings
from throughline.lakehouse.append import AppendOnce


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
        self._table = AppendOnce(settings.table_path(usecase, LAYER, TABLE), by_day=True, same_day=True)
        self.sources: dict[str, SourceCount] = defaultdict(SourceCount)
        if (rows := self._table.rows()) is not None:
            self._count(rows)

    @property
    def version(self) -> int | None:
        """None before the first event."""
        return self._table.version

    def append(self, rows: pl.DataFrame) -> int:
        """Write rows (`to_rows`) that are not in the table yet as one commit; returns how many these were."""
        fresh = self._table.append(rows)
        self._count(fresh.lazy())
        return fresh.height

    def _count(self, rows: pl.LazyFrame) -> None:
        counted = rows.group_by("source").agg(pl.len(), pl.max("sequence")).collect()
        for source, events, highest in counted.iter_rows():
            self.sources[source].add(events, highest)
