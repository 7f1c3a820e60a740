"""Durable intake of lines: each is confirmed when it is on disk, and moved to its table in batches.

Owns: the journal between receipt and table, group commit, the counts. Does not own: what a line means, or its table.
After a kill between the commit to the table and the removal from the journal, `move` gets the same lines again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from throughline.foundation.errors import ThroughlineError
from throughline.journal.journal import Journal

log = logging.getLogger(__name__)

BATCH_S = 1.0
BATCH_LINES = 500


class Intake(ABC):
    """`confirm` is called in the event loop, `flush` in any thread. `what`: the subject of messages about a failure."""

    what: str

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder)
        self._writing = threading.Lock()
        self.duplicates = 0
        self.rejected = 0
        self.failure: str | None = None
        # lines written to the journal, and those moved to a table; each count is changed by one thread only
        self._confirmed = sum(len(Journal.read(segment)) for segment in self._journal.sealed())
        self._moved = 0
        self._unsynced: list[tuple[list[bytes], asyncio.Future[None]]] = []
        self._syncing = False
        self.full = asyncio.Event()

    @abstractmethod
    def move(self, lines: list[bytes]) -> int:
        """Write lines to their tables, without those that are there. Returns how many these are."""

    @property
    def pending(self) -> int:
        """Confirmed lines that are not in a table yet."""
        return self._confirmed - self._moved

    async def confirm(self, lines: list[bytes]) -> None:
        """Returns when all the lines are on disk; otherwise none is, and it raises."""
        confirmed = asyncio.get_running_loop().create_future()
        self._unsynced.append((lines, confirmed))
        if not self._syncing:
            self._syncing = True
            try:
                while self._unsynced:
                    group, self._unsynced = self._unsynced, []
                    await self._sync(group)
            finally:
                self._syncing = False
        await confirmed

    async def _sync(self, group: list[tuple[list[bytes], asyncio.Future[None]]]) -> None:
        """One write and one fsync for all lines that came while the last one ran."""
        together = [line for lines, _ in group for line in lines]
        try:
            await asyncio.to_thread(self._journal.append, together, sync=True)
        except OSError as error:
            refusal = ThroughlineError(f"The journal cannot be written ({error}): free disk space.")
            for _, confirmed in group:
                if not confirmed.done():
                    confirmed.set_exception(refusal)
            return
        self._confirmed += len(together)
        for _, confirmed in group:
            if not confirmed.done():
                confirmed.set_result(None)
        if self.pending >= BATCH_LINES:
            self.full.set()

    def flush(self) -> None:
        """Move everything confirmed so far."""
        with self._writing:
            for segment in self._journal.sealed():
                lines = Journal.read(segment)
                self.duplicates += self.move(lines)
                self._journal.remove(segment)
                self._moved += len(lines)

    async def flush_periodically(self) -> None:
        """Flush once a second, or as soon as a batch is full. A failure is logged, and flushing is tried again."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BATCH_S):
                    await self.full.wait()
            self.full.clear()
            if self.pending:
                try:
                    await run_in_threadpool(self.flush)
                    self.failure = None
                except Exception as error:  # delta-rs raises many kinds; the lines stay in the journal
                    self.failure = f"{self.what} cannot be written ({str(error).splitlines()[0]})."
                    log.exception("%s Trying again every %s s.", self.failure, BATCH_S)

    def close(self) -> None:
        self.flush()
        self._journal.close()
