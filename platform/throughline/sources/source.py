"""What every source gives, and which one feeds a table.

A source gives the rows of one table that became known in [start, end): a Polars frame with `event_time` (when it
happened) and `available_at` (when the platform could have known it), both instants in UTC, beside the declared
columns. Asked for adjacent windows it gives every row once; asked for the same window again it gives the whole window
again. So a late or corrected row needs no way of its own: the days it belongs to are brought again, and
`lakehouse.table.replace_days` puts each whole day in the place of the old one.

Owns: the protocol and the choice. Does not own: partitions (`ingestion/ingest.py`), verdicts on rows (`validation/`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase, load_object
from throughline.usecase.feeds import FilesFeed, JdbcFeed, PushFeed


class Source(Protocol):
    """`name` is what a person has to correct when the rows are wrong."""

    name: str

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        """Rows that became known in [start, end), None: from the beginning. Raises `ThroughlineError` in one line."""


@runtime_checkable
class Watched(Protocol):
    """A source that can tell cheaply what arrived since somebody looked last."""

    def parts(self) -> Mapping[str, str]:
        """What stands there now: names, each with a stamp that changes when its content does."""

    def days(self, part: str) -> set[date]:
        """The local days of knowledge time of the rows of a part. Raises `ThroughlineError` when it cannot be read."""


class ModuleSource:
    """A function of the use case's own: `read(table, start, end)`."""

    def __init__(self, module: str, table: str) -> None:
        self.name = module
        self._table = table

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        return load_object(self.name).read(self._table, start, end)


def source_of(settings: Settings, usecase: UseCase, table: str) -> Source:
    """The source that is declared for a raw table. Nothing is read yet."""
    match usecase.sources.tables[table].feed:
        case FilesFeed() as feed:
            from throughline.sources.files import FileSource

            return FileSource(usecase, table, feed)
        case JdbcFeed() as feed:
            from throughline.sources.jdbc import JdbcSource

            return JdbcSource(settings, usecase, table, feed)
        case PushFeed() as feed:
            from throughline.sources.received import PushSource

            return PushSource(settings, usecase, table, feed)
        case None:
            if usecase.sources.module is None:
                raise ThroughlineError(f"{usecase.name}: table {table} has no source: declare `from`.")
            return ModuleSource(usecase.sources.module, table)


def identity(usecase: UseCase, table: str) -> str:
    """What decides what a source delivers, as a text: the code of its module, or what is declared."""
    from throughline.foundation.fingerprint import fingerprint_code

    feed = usecase.sources.tables[table].feed
    if feed is not None:
        return json.dumps(feed.model_dump(mode="json"), sort_keys=True)
    return fingerprint_code([Path(load_object(usecase.sources.module).__file__)])


def known_in(rows: pl.DataFrame, start: datetime | None, end: datetime) -> pl.DataFrame:
    """The rows that became known in [start, end)."""
    known = pl.col("available_at") < end
    return rows.filter(known if start is None else known & (pl.col("available_at") >= start))
