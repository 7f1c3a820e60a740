"""Requests that wait at the same time are processed as one batch, in one thread.

Owns: forming batches and returning the results. Does not own: what is done with a batch.
A feature look-up in another process has a fixed cost besides that per row. Nothing waits for a batch to fill: while one
is processed, the requests that arrive form the next.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """`process(items)` returns one result, or one exception, per item; it runs in the batcher's thread only.

    The thread starts with the first item, and ends with `close` when all items are processed; a later item starts it
    again, so that none is lost while its owner is being replaced.
    """

    def __init__(self, process: Callable[[Sequence[Item]], Sequence[Result | Exception]], max_items: int) -> None:
        self._process = process
        self._max_items = max_items
        self._lock = threading.Lock()
        self._start()

    async def submit(self, item: Item) -> Result:
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._queue,), name="batcher", daemon=True)
                self._thread.start()
            self._queue.put((item, result))
        return await result

    def close(self) -> None:
        """Process what waits, then end."""
        with self._lock:
            thread, waiting = self._thread, self._queue
            self._start()
        if thread is not None:
            waiting.put(None)
            thread.join(timeout=10)

    def _start(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Item, asyncio.Future[Result]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _run(self, waiting: queue.SimpleQueue[tuple[Item, asyncio.Future[Result]] | None]) -> None:
        while (first := waiting.get()) is not None:
            batch, ends = [first], False
            while len(batch) < self._max_items and not ends:
                try:
                    more = waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ends = True
                else:
                    batch.append(more)
            self._process_batch(batch)
            if ends:
                return

    def _process_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results: Sequence[Any] = self._process([item for item, _ in batch])
        except Exception as error:  # the boundary of this thread: the waiting requests get it
            results = [error] * len(batch)
        for loop in {future.get_loop() for _, future in batch}:
            pairs = [(f, result) for (_, f), result in zip(batch, results, strict=True) if f.get_loop() is loop]
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in pairs:
        if future.done():  # the caller went away
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
