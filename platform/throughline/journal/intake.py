"""From receipt to table, durably: lines are confirmed when they are on the disk, and moved on in batches.

Owns: the journal between the two, group commit, what is counted on the way. Does not own: what a line means, where it
is moved to (`move`, which must drop what it was already given: after a kill between table and journal it comes again).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from throughline.foundation.errors import ThroughlineError
from throughline.journal.journal import Journal

log = logging.getLogger(__name__)

BATCH_S = 1.0
BATCH_LINES = 500


class Intake(ABC):
    """`confirm` from the event loop, `write` from any thread. `what` is the word for the lines in messages."""

    what: str

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder)
        self._writing = threading.Lock()
        self.duplicates = 0
        self.rejected = 0
        self.failure: str | None = None
        # Two counts, each changed by one thread only: lines in the journal so far, and those moved on to a table.
        self._kept = sum(len(Journal.read(segment)) for segment in self._journal.sealed())
        self._moved = 0
        self._unsynced: list[tuple[list[bytes], asyncio.Future[None]]] = []
        self._syncing = False
        self.full = asyncio.Event()

    @abstractmethod
    def move(self, lines: list[bytes]) -> int:
        """Bring lines where they belong. Returns how many of them were already there."""

    @property
    def pending(self) -> int:
        """Confirmed lines that were not moved on yet."""
        return self._kept - self._moved

    async def confirm(self, lines: list[bytes]) -> None:
        """Returns when the lines are on the disk: all of them, or none and it raises."""
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
        """One write and one fsync for everything that came in while the last one ran."""
        together = [line for lines, _ in group for line in lines]
        try:
            await asyncio.to_thread(self._journal.append, together, sync=True)
        except OSError as error:
            refusal = ThroughlineError(f"The journal cannot be written ({error}): free disk space.")
            for _, confirmed in group:
                if not confirmed.done():
                    confirmed.set_exception(refusal)
            return
        self._kept += len(together)
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

    async def write_for_ever(self) -> None:
        """Move once a second, or as soon as a batch is full. A failure is reported and tried again."""
        while True:
            try:
                async with asyncio.timeout(BATCH_S):
                    await self.full.wait()
            except TimeoutError:
                pass
            self.full.clear()
            if self.pending:
                try:
                    await run_in_threadpool(self.flush)
                    self.failure = None
                except Exception as error:  # delta-rs raises many kinds; the lines stay in the journal
                    self.failure = f"{self.what} cannot be written ({str(error).splitlines()[0]})."
                    log.exception("%s Tried again every %s s.", self.failure, BATCH_S)

    def close(self) -> None:
        self.flush()
        self._journal.close()
