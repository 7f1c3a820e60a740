"""Rows from files by URI: a folder of this machine, or an S3-compatible store by the standard credentials chain.

Owns: which files are read, and when their rows were known. Does not own: types (`conform.py`). Without a declared
`available_at` the rows of a file are known when it was last modified: a late file belongs to the day it came.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

import polars as pl
from fsspec.utils import glob_translate
from polars.exceptions import PolarsError
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT
from throughline.lakehouse.table import INSTANT
from throughline.sources.conform import as_declared, empty
from throughline.sources.source import known_in
from throughline.usecase import UseCase
from throughline.usecase.feeds import FilesFeed

# A file holds nothing that became known after it was written, give or take the difference of clocks.
SKEW = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class File:
    """`modified` in UTC, to the microsecond; `stamp` changes when the file is written."""

    path: str
    modified: datetime
    stamp: str


class FileSource:
    """The files of one table; listed anew at each call."""

    def __init__(self, usecase: UseCase, table: str, feed: FilesFeed) -> None:
        self.name = f"the files {feed.files}"
        self._seen: dict[str, File] = {}
        self._usecase, self._feed, self._expects = usecase, feed, usecase.sources.tables[table].expects

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        """Rows in the order of knowledge time, of files by path, of lines within a file."""
        files = self.files()
        if not files:
            raise ThroughlineError(f"No file matches {self._feed.files}: correct `files`, or deliver the first one.")
        frames = [self._rows(file).filter(known_in(start, end)) for file in files if self._may_hold(file, start, end)]
        if not frames:
            # without declared columns, they are those of the last file
            frames = [empty(self._expects) if self._expects else self._rows(files[-1]).clear()]
        return pl.concat(frames, how="diagonal_relaxed").sort("available_at", maintain_order=True)

    def parts(self) -> dict[str, str]:
        self._seen = {file.path: file for file in self.files()}
        return {path: file.stamp for path, file in self._seen.items()}

    def days(self, part: str) -> set[date]:
        """Of a file that the last `parts` named. With a declared `available_at` the file is read."""
        file = self._seen[part]
        if self._feed.available_at is not None:
            with suppress(ThroughlineError):  # the run that ingests it reports the reason
                known = self._rows(file)["available_at"].dt.convert_time_zone(self._usecase.timezone)
                return set(known.dt.date().unique())
        return {self._usecase.local_day(file.modified)}

    def files(self) -> list[File]:
        """The files that match now, by path. Raises when they cannot be listed."""
        storage, pattern = self._storage()
        matching = re.compile(glob_translate(pattern))
        fixed = PurePosixPath(*takewhile(lambda part: not set("*?[") & set(part), PurePosixPath(pattern).parts))
        try:
            root = storage.get_file_info(str(fixed))
            below = FileSelector(str(fixed), recursive=True, allow_not_found=True)
            found = [root] if root.type == FileType.File else storage.get_file_info(below)
        except OSError as error:
            raise self._unreadable(self._feed.files, error) from error
        listed = []
        for info in sorted(found, key=lambda info: info.path):
            own = PurePosixPath(info.path).relative_to(fixed.parent).parts
            hidden = any(part.startswith(("_", ".")) for part in own[1:])
            if info.type == FileType.File and matching.fullmatch(info.path) and not hidden:
                modified = _EPOCH + timedelta(microseconds=info.mtime_ns // 1000)
                listed.append(File(info.path, modified, f"{info.mtime_ns}:{info.size}"))
        return listed

    def _storage(self) -> tuple[Any, str]:
        """The file system and the pattern as it names files."""
        uri = self._feed.files.removeprefix("file://")
        if "://" not in uri:
            return LocalFileSystem(), str(PROJECT_ROOT / uri)
        scheme, _, rest = uri.partition("://")
        try:
            return FileSystem.from_uri(f"{scheme}://{rest.partition('/')[0]}")[0], rest
        except (OSError, ValueError) as error:
            raise self._unreadable(uri, error) from error

    def _may_hold(self, file: File, start: datetime | None, end: datetime) -> bool:
        if self._feed.available_at is None:
            return (start is None or start <= file.modified) and file.modified < end
        return start is None or start - SKEW <= file.modified

    def _rows(self, file: File) -> pl.DataFrame:
        storage, _ = self._storage()
        try:
            with storage.open_input_file(file.path) as opened:
                rows = self._parsed(opened.read())
        except (OSError, PolarsError) as error:
            raise self._unreadable(file.path, error) from error
        if self._expects and not rows.width:
            return empty(self._expects)
        if self._feed.available_at is None:
            rows = rows.with_columns(available_at=pl.lit(file.modified, INSTANT))
        rows = as_declared(rows, self._feed, self._expects, file.path)
        ahead = rows["available_at"].max()
        if isinstance(ahead, datetime) and ahead > file.modified + SKEW:
            raise ThroughlineError(
                f"{file.path}: written at {file.modified:%Y-%m-%d %H:%M} UTC, it has a row that became known at "
                f"{ahead:%Y-%m-%d %H:%M} UTC: correct `available_at` or `timezone` under `from`, or the file."
            )
        return rows

    def _parsed(self, content: bytes) -> pl.DataFrame:
        feed = self._feed
        if feed.kind == "parquet":
            return pl.read_parquet(content)
        if feed.kind == "csv":
            nulls = feed.null_values or None
            return pl.read_csv(
                content, separator=feed.separator, null_values=nulls, infer_schema=False, raise_if_empty=False
            )
        if content.lstrip()[:1] in (b"[", b""):
            return pl.read_json(content.strip() or b"[]", infer_schema_length=None)
        return pl.read_ndjson(content, infer_schema_length=None)

    def _unreadable(self, what: str, error: Exception) -> ThroughlineError:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:200]
        return ThroughlineError(f"{what} cannot be read as {self._feed.kind} ({reason}): correct `from`, or the file.")
