"""The source that a use case declares for a table, and the fingerprint of what decides its rows."""

from __future__ import annotations

import json
from datetime import datetime

import polars as pl

from throughline.foundation.fingerprint import combine, fingerprint_code
from throughline.foundation.settings import Settings
from throughline.sources.files import FileSource
from throughline.sources.jdbc import JdbcSource
from throughline.sources.received import PushSource
from throughline.sources.source import Source
from throughline.usecase import UseCase, load_object
from throughline.usecase.feeds import FilesFeed, JdbcFeed, PushFeed


class ModuleSource:
    """A function in a module of the use case: `read(table, start, end)`."""

    def __init__(self, module: str, table: str) -> None:
        self.name, self._table = module, table

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        return load_object(self.name).read(self._table, start, end)


def source_of(settings: Settings, usecase: UseCase, table: str) -> Source:
    """The source of a raw table. Nothing is read yet."""
    match usecase.sources.tables[table].feed:
        case FilesFeed() as feed:
            return FileSource(usecase, table, feed)
        case JdbcFeed() as feed:
            return JdbcSource(settings, usecase, table, feed)
        case PushFeed() as feed:
            return PushSource(settings, usecase, table, feed)
        case _:
            return ModuleSource(_module(usecase), table)


def source_fingerprint(usecase: UseCase, table: str) -> str:
    """Of the declared feed, or of the code of the module."""
    feed = usecase.sources.tables[table].feed
    if feed is not None:
        return combine(json.dumps(feed.model_dump(mode="json"), sort_keys=True))
    return fingerprint_code([_module(usecase)])


def _module(usecase: UseCase) -> str:
    assert usecase.sources.module is not None  # a declaration has it where a table has no feed
    return usecase.sources.module
