"""Durable intake of lines: each is confirmed when it is on disk, and moved to its table in batches.

Owns: the journal between receipt and table, group commit, retries per table, lines set aside, the counts. Does not own:
what a line means, or its table.
After a kill between the commit to the table and the removal from the journal, `append` gets the same rows again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from fastapi.concurrency import run_in_threadpool

from throughline.foundation.errors import ThroughlineError
from throughline.journal.journal import Journal
from throughline.journal.set_aside import SetAside

log = logging.getLogger(__name__)

BATCH_S = 1.0
BATCH_LINES = 2000
SLOWEST_RETRY_S = 30.0
_JOURNAL = "the journal"  # stands for a table where the journal's own files fail
STUCK_S = 60.0  # without an end of a flush for this long, while lines wait, the writer is reported


@dataclass
class Failure:
    """A table that cannot be written: why, since when (UTC), and when it is tried again (`time.monotonic`)."""

    what: str
    since: datetime
    attempts: int = 0
    again_at: float = 0.0

    def repeat(self, what: str) -> None:
        self.what, self.attempts = what, self.attempts + 1
        self.again_at = time.monotonic() + min(SLOWEST_RETRY_S, BATCH_S * 2 ** min(self.attempts - 1, 10))


@dataclass
class _Segment:
    """A sealed segment that was read: the tables that its lines are not in yet, and the lines that are set aside when
    all others are in theirs."""

    lines: int
    tables: set[str]
    bad: list[tuple[bytes, str]]


class Intake(ABC):
    """`confirm` is called in the event loop, `flush` in any thread. `what`: the subject of messages about a failure.

    A table that cannot be written is tried again, less and less often, and does not hold up the others. A line that no
    table can ever take is set aside.
    """

    what: str

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder)
        self._aside = SetAside(folder)
        self._writing = threading.Lock()
        self.duplicates = 0
        self.rejected = 0
        self.failures: dict[str, Failure] = {}  # by table; also of a table that cannot be opened
        # lines written to the journal, and those moved to a table; each count is changed by one thread only
        self._confirmed = sum(len(Journal.read(segment)) for segment in self._journal.sealed())
        self._moved = 0
        self._left: dict[Path, _Segment] = {}
        self._unsynced: list[tuple[list[bytes], asyncio.Future[None]]] = []
        self._syncing: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._flushed_at = time.monotonic()
        self._full = asyncio.Event()

    @abstractmethod
    def parse(self, line: bytes) -> tuple[str, Any]:
        """The table of a line, and what it holds. Raises `ValueError`, `KeyError`, `TypeError` or `ThroughlineError`
        for a line that can never be written."""

    @abstractmethod
    def to_rows(self, items: Sequence[Any]) -> pl.DataFrame:
        """Rows of one table; whatever it raises, one of the items cannot be written."""

    @abstractmethod
    def append(self, table: str, rows: pl.DataFrame) -> int:
        """Write rows that are not in the table yet. Returns how many these are."""

    @property
    def pending(self) -> int:
        """Confirmed lines that are not in a table yet."""
        return self._confirmed - self._moved

    @property
    def set_aside(self) -> int:
        """Lines that can never be written, since the journal was made."""
        return self._aside.count + sum(len(segment.bad) for segment in list(self._left.values()))

    @property
    def broken(self) -> str | None:
        """Why this process cannot write any more, until it is restarted."""
        if self._writer is not None and self._writer.done():
            return f"{self.what}: the writer ended: restart the collector."
        if self.pending and time.monotonic() - self._flushed_at > STUCK_S:
            return f"{self.what}: {self.pending} lines wait, and the writer hangs: restart the collector."
        return None

    def problems(self) -> list[dict[str, str]]:
        """What keeps lines from their tables now: `what`, and `since` (UTC) where it is known."""
        broken = [{"what": self.broken}] if self.broken else []
        failing = [{"what": each.what, "since": each.since.isoformat()} for each in list(self.failures.values())]
        return broken + failing

    async def confirm(self, lines: list[bytes]) -> None:
        """Returns when all the lines are on disk; otherwise none is, and it raises."""
        confirmed = asyncio.get_running_loop().create_future()
        self._unsynced.append((lines, confirmed))
        if self._syncing is None or self._syncing.done():
            # a task of its own: a caller that goes away must not take the others' confirmation with it
            self._syncing = asyncio.create_task(self._sync())
        await confirmed

    async def _sync(self) -> None:
        """One write and one fsync for all lines that came while the last one ran."""
        while self._unsynced:
            group, self._unsynced = self._unsynced, []
            together = [line for lines, _ in group for line in lines]
            refusal = None
            try:
                await asyncio.to_thread(self._journal.append, together, sync=True)
                self._confirmed += len(together)
            except Exception as error:  # whatever it is, the callers must get an answer
                refusal = ThroughlineError(f"The journal cannot be written ({error}): free disk space.")
            for _, confirmed in group:
                if confirmed.done():
                    continue
                if refusal is None:
                    confirmed.set_result(None)
                else:
                    confirmed.set_exception(refusal)
        if self.pending >= BATCH_LINES:
            self._full.set()

    def flush(self, now: bool = True) -> None:
        """Move everything confirmed so far; what failed is in `failures`. now: also to tables whose time to be tried
        again has not come."""
        with self._writing:
            failed: set[str] = set()  # in this pass: once per table is enough
            for path in self._journal.sealed():
                left = self._left.get(path)
                waits_for = (left.tables or {_JOURNAL}) if left else set()
                if left and all(name in failed or not (now or self._due(name)) for name in waits_for):
                    continue
                try:
                    self._move(path, failed, now)
                    self.failures.pop(_JOURNAL, None)
                except OSError as error:  # of the journal or the file of lines set aside
                    self._failed(_JOURNAL, error)
            self._flushed_at = time.monotonic()

    def _move(self, path: Path, failed: set[str], now: bool) -> None:
        segment = self._left.get(path)
        if segment is None or segment.tables:
            rows, bad, lines = self._read(path)
            segment = self._left.setdefault(path, _Segment(lines, set(rows), bad))
            for table in sorted(segment.tables):
                if table in failed or not (now or self._due(table)):
                    continue
                try:
                    segment.bad += self._write(table, rows[table])
                except Exception as error:  # delta-rs raises many kinds; the lines stay in the journal
                    failed.add(table)
                    self._failed(table, error)
                else:
                    self.failures.pop(table, None)
                    segment.tables.remove(table)
        if not segment.tables:
            self._remove(path, segment)

    def _read(self, path: Path) -> tuple[dict[str, list[tuple[bytes, Any]]], list[tuple[bytes, str]], int]:
        """The lines of a segment by table, those that cannot be read with the reason, and how many there are."""
        rows: dict[str, list[tuple[bytes, Any]]] = defaultdict(list)
        bad = []
        lines = Journal.read(path)
        for line in lines:
            try:
                table, item = self.parse(line)
            except (ValueError, KeyError, TypeError, ThroughlineError) as error:
                bad.append((line, f"cannot be read ({_first_line(error)})"))
            else:
                rows[table].append((line, item))
        return rows, bad, len(lines)

    def _write(self, table: str, items: list[tuple[bytes, Any]]) -> list[tuple[bytes, str]]:
        """Returns the lines that no row can be made of."""
        rows, bad = self._convert(items)
        fresh = self.append(table, rows) if rows is not None else 0
        self.duplicates += len(items) - len(bad) - fresh
        return bad

    def _convert(self, items: list[tuple[bytes, Any]]) -> tuple[pl.DataFrame | None, list[tuple[bytes, str]]]:
        """Rows of the items, and the lines of those that are none."""
        try:
            return self.to_rows([item for _, item in items]), []
        except Exception:
            log.exception("%s: a row cannot be made of a line; each is tried by itself.", self.what)
        frames, bad = [], []
        for line, item in items:
            try:
                frames.append(self.to_rows([item]))
            except Exception as error:  # as above
                bad.append((line, f"cannot be a row ({_first_line(error)})"))
        return (pl.concat(frames) if frames else None), bad

    def _remove(self, path: Path, segment: _Segment) -> None:
        if segment.bad:
            log.error("%s: %d lines are set aside in %s.", self.what, len(segment.bad), self._aside.path)
            self._aside.add(segment.bad)
            segment.bad.clear()
        self._journal.remove(path)
        del self._left[path]
        self._moved += segment.lines

    def _due(self, table: str) -> bool:
        failure = self.failures.get(table)
        return failure is None or time.monotonic() >= failure.again_at

    def _failed(self, table: str, error: Exception) -> None:
        what = f"{self.what} of {table} cannot be written ({_first_line(error)})."
        failure = self.failures.setdefault(table, Failure(what, datetime.now(UTC)))
        failure.repeat(what)
        log.error("%s Trying again (attempt %d).", what, failure.attempts, exc_info=failure.attempts == 1)

    def start(self) -> None:
        """Begin to flush once a second, or as soon as a batch is full; in the running event loop."""
        self._writer = asyncio.create_task(self._flush_periodically())

    async def _flush_periodically(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BATCH_S):
                    await self._full.wait()
            self._full.clear()
            if not self.pending:
                self._flushed_at = time.monotonic()
                continue
            try:
                await run_in_threadpool(self.flush, now=False)
            except Exception as error:  # the boundary of the writer: whatever it is, what comes later must be written
                self._failed(_JOURNAL, error)

    async def stop(self) -> None:
        """End the writer, then as `close`."""
        if self._writer is not None:
            self._writer.cancel()
        await run_in_threadpool(self.close)

    def close(self) -> None:
        """Move what can be moved; the rest stays in the journal."""
        self.flush()
        self._journal.close()


def counts(intake: Intake) -> Mapping[str, Any]:
    """What every intake counts; `failure` is the first of its problems, in one line."""
    problems = intake.problems()
    return {
        "duplicates": intake.duplicates,
        "rejected": intake.rejected,
        "set_aside": intake.set_aside,
        "pending": intake.pending,
        "failure": problems[0]["what"] if problems else None,
        "problems": problems,
    }


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
