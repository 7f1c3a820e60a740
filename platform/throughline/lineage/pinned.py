"""Many small reads of pinned tables: rows by version and days, from a cache in memory.

Owns: the cache, what a version was made from, which version was the newest at an instant. Does not own: reading a table
(`lakehouse/table.py`). The files of a version never change and neighbouring versions share most of them, so rows are
cached by file set and not by version: a trace of another day's prediction finds them again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

import polars as pl

from throughline.featurestore.incremental import inputs_of
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.delta import find
from throughline.lakehouse.table import DAY, KEEPS_CONTENT, Commit, history, open_table, scan

_VERSIONS_KEPT = 1024
_SCANS_KEPT = 64  # each holds its table's log
_BYTES_KEPT = 512 * 2**20

Files = tuple[str, ...]


@dataclass(frozen=True)
class _History:
    """A table's commits, oldest first, as read at `read_at` (UTC, wall clock)."""

    read_at: datetime
    commits: list[Commit]


class PinnedTables:
    """Pinned reads of one home's tables; not thread-safe."""

    def __init__(self, settings: Settings, bytes_kept: int = _BYTES_KEPT) -> None:
        self._settings = settings
        self._bytes_kept = bytes_kept
        self._histories: dict[str, _History] = {}
        self._files: OrderedDict[TableReference, dict[date | None, Files]] = OrderedDict()
        self._scans: OrderedDict[TableReference, pl.LazyFrame] = OrderedDict()
        self._rows: OrderedDict[tuple[str, Files], tuple[pl.DataFrame, int]] = OrderedDict()
        self._schemas: dict[tuple, int] = {}  # numbered, as to compare two of them takes longer than to join rows
        self._bytes = 0

    # What a version is

    def commits(self, table: str, until: datetime | None = None) -> list[Commit]:
        """The table's commits, oldest first, at least those up to `until` (wall clock); none where there is no table.

        The log is read again when there is no `until`, or when it was last read before it.
        """
        return self._history(table, until).commits

    def at(self, table: str, instant: datetime) -> list[TableReference]:
        """Versions that the table had at `instant` (wall clock), the newest first, then those that came later."""
        commits = self._history(table, instant).commits
        seen = bisect_right(commits, instant, key=lambda commit: commit.at)
        ordered = [*reversed(commits[:seen]), *commits[seen:]]
        return [TableReference(table, commit.version) for commit in ordered]

    def made_from(self, pinned: TableReference) -> list[TableReference] | None:
        """The versions that this one's content was made from; None where its history does not name them."""
        for commit in reversed(self._up_to(pinned)):
            if (inputs := inputs_of(pinned.table, commit)) is not None:
                return inputs
            if commit.operation not in KEEPS_CONTENT:
                return None
        return None

    def content(self, pinned: TableReference) -> TableReference:
        """The version that brought this one's content: an earlier one where only maintenance came since."""
        for commit in reversed(self._up_to(pinned)):
            if commit.operation not in KEEPS_CONTENT:
                return TableReference(pinned.table, commit.version)
        return pinned

    def written_at(self, pinned: TableReference) -> datetime | None:
        """When the version was committed (UTC, by the writer's clock)."""
        newest = self._up_to(pinned)[-1:]
        return newest[0].at if newest and newest[0].version == pinned.version else None

    def _up_to(self, pinned: TableReference) -> list[Commit]:
        known = self._histories.get(pinned.table)
        if known is None or not known.commits or known.commits[-1].version < pinned.version:
            known = self._history(pinned.table)
        return [commit for commit in known.commits if commit.version <= pinned.version]

    def _history(self, table: str, until: datetime | None = None) -> _History:
        known = self._histories.get(table)
        if known is None or until is None or until >= known.read_at:
            read_at, location = datetime.now(UTC), self._settings.lakehouse / table
            commits = history(location)[::-1] if find(location) is not None else []
            known = self._histories[table] = _History(read_at, commits)
        return known

    # Its rows

    def days(self, pinned: TableReference) -> list[date]:
        """The days (partitions) that the version holds rows of, in order; none where it is not partitioned."""
        return sorted(day for day in self._by_day(pinned) if day is not None)

    def rows(self, pinned: TableReference, first: date | None = None, last: date | None = None) -> pl.DataFrame:
        """The rows of the days [first, last]; of all there are without them, or where the table has no days.

        Raises when that version is gone.
        """
        held = self._by_day(pinned)
        wanted = {
            (pinned.table, files): day
            for day, files in held.items()
            if day is None or ((first is None or day >= first) and (last is None or day <= last))
        }
        self._fetch(pinned, {key: day for key, day in wanted.items() if key not in self._rows})
        found, schemas = [], set()
        for key in wanted:
            self._rows.move_to_end(key)
            rows, schema = self._rows[key]
            found.append(rows)
            schemas.add(schema)
        self._forget(keep=len(found))
        if not found:
            return self._collect(pinned, lambda rows: rows.head(0))
        if len(found) == 1:
            return found[0]
        return pl.concat(found, how="vertical" if len(schemas) == 1 else "diagonal_relaxed", rechunk=False)

    def _fetch(self, pinned: TableReference, missing: Mapping[tuple[str, Files], date | None]) -> None:
        if not missing:
            return
        if None in missing.values():
            parts = {None: self._collect(pinned, lambda rows: rows)}
        else:
            days = sorted(day for day in missing.values() if day is not None)
            near = pl.col(DAY).is_between(days[0], days[-1]) & pl.col(DAY).is_in(days)
            rows = self._collect(pinned, lambda rows: rows.filter(near))
            parts = {day: part for (day,), part in rows.partition_by(DAY, as_dict=True).items()}
        for key, day in missing.items():
            part = parts[day]
            self._rows[key] = part, self._schemas.setdefault(tuple(part.schema.items()), len(self._schemas))
            self._bytes += part.estimated_size()

    def _collect(self, pinned: TableReference, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
        """Keeps the version open: opening it takes ten times as long as reading a day of it."""
        if pinned in self._scans:
            try:
                return query(self._scans[pinned]).collect()
            except (OSError, pl.exceptions.PolarsError):  # vacuumed since
                del self._scans[pinned]
        self._scans[pinned] = scan(self._settings.lakehouse / pinned.table, pinned.version)
        if len(self._scans) > _SCANS_KEPT:
            self._scans.popitem(last=False)
        return query(self._scans[pinned]).collect()

    def _forget(self, keep: int) -> None:
        while self._bytes > self._bytes_kept and len(self._rows) > keep:
            _, (rows, _) = self._rows.popitem(last=False)
            self._bytes -= rows.estimated_size()

    def _by_day(self, pinned: TableReference) -> dict[date | None, Files]:
        if pinned not in self._files:
            table = open_table(self._settings.lakehouse / pinned.table, pinned.version)
            actions = pl.DataFrame(table.get_add_actions(flatten=True))
            actions = actions.filter(pl.col("num_records").fill_null(1) > 0)
            column = f"partition.{DAY}"
            days = actions[column] if column in actions.columns else [None] * actions.height
            held: dict[date | None, list[str]] = defaultdict(list)
            for day, path in zip(days, actions["path"], strict=True):
                held[day].append(path)
            self._files[pinned] = {day: tuple(sorted(paths)) for day, paths in held.items()}
            if len(self._files) > _VERSIONS_KEPT:
                self._files.popitem(last=False)
        self._files.move_to_end(pinned)
        return self._files[pinned]
