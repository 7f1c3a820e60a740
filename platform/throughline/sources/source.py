"""The protocol of a source: `read(start, end)` returns the rows of one table that became known in [start, end).

A Polars frame: the declared columns, `event_time` (when it happened) and `available_at` (when the platform could have
known it), both in UTC. Adjacent windows give every row once, the same window the same rows, so that days with late or
corrected rows are ingested again. Does not own: which source a table has (`declared.py`), partitions (`ingestion/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Protocol, runtime_checkable

import polars as pl


class Source(Protocol):
    """`name`: what a message names as the thing to correct when rows are wrong."""

    name: str

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        """Rows that became known in [start, end); start None: from the beginning. Raises `ThroughlineError`."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A source whose arrivals can be detected without reading its rows."""

    def parts(self) -> Mapping[str, str]:
        """The parts it has now: names, each with a stamp that changes with the part's content."""
        ...

    def days(self, part: str) -> set[date]:
        """The local days of knowledge time of the rows of a part. Raises `ThroughlineError` when it cannot be read."""
        ...


def known_in(start: datetime | None, end: datetime) -> pl.Expr:
    """Whether a row became known in [start, end)."""
    known = pl.col("available_at") < end
    return known if start is None else known & (pl.col("available_at") >= start)
