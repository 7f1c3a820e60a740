"""One thread that answers the requests waiting for it together.

Owns: gathering and handing back. Does not own: what is done with a batch.
A feature look-up has a fixed cost besides that per row: under load a batch forms by itself while the last one is being
answered, and a lone request is not kept waiting for company.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class Lane(Generic[Job, Answer]):
    """`work(jobs)` returns one answer, or one exception, per job; it runs in the lane's thread only."""

    def __init__(self, work: Callable[[Sequence[Job]], Sequence[Answer | Exception]], max_jobs: int = 32) -> None:
        self._work = work
        self._max_jobs = max_jobs
        self._queue: queue.SimpleQueue[tuple[Job, asyncio.Future[Answer]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    async def submit(self, job: Job) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put((job, answer))
        return await answer

    def close(self) -> None:
        """Answer what waits, then end."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            waiting, ends = [first], False
            while len(waiting) < self._max_jobs and not ends:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ends = True
                else:
                    waiting.append(more)
            self._answer(waiting)
            if ends:
                return

    def _answer(self, waiting: list[tuple[Job, asyncio.Future[Answer]]]) -> None:
        try:
            answers: Sequence[Any] = self._work([job for job, _ in waiting])
        except Exception as error:  # the boundary of this thread: the waiting requests get it
            answers = [error] * len(waiting)
        for loop in {answer.get_loop() for _, answer in waiting}:
            pairs = [(a, result) for (_, a), result in zip(waiting, answers, strict=True) if a.get_loop() is loop]
            loop.call_soon_threadsafe(_settle, pairs)


def _settle(pairs: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for answer, result in pairs:
        if answer.done():  # the caller went away
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
