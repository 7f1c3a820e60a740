"""Waiting requests are answered together, each with its own answer or its own error."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serving.batching import Batcher


def test_requests_that_wait_form_one_batch_and_keep_their_answers():
    batches: list[list[int]] = []
    go = threading.Event()

    def work(jobs):
        go.wait(5)
        batches.append(list(jobs))
        return [job * 10 for job in jobs]

    async def submit_all() -> list[int]:
        tasks = [asyncio.ensure_future(batcher.submit(number)) for number in range(6)]
        await asyncio.sleep(0.05)
        go.set()
        return await asyncio.gather(*tasks)

    batcher = Batcher(work, max_items=4)
    assert asyncio.run(submit_all()) == [0, 10, 20, 30, 40, 50]
    assert [job for batch in batches for job in batch] == list(range(6))
    assert 2 <= len(batches) <= 3
    assert max(map(len, batches)) == 4
    batcher.close()


def test_an_error_reaches_the_request_it_belongs_to():
    batcher = Batcher(lambda jobs: [ValueError("bad") if job < 0 else job for job in jobs], max_items=4)

    async def submit_all():
        return await asyncio.gather(batcher.submit(1), batcher.submit(-1), return_exceptions=True)

    good, bad = asyncio.run(submit_all())
    assert good == 1
    assert isinstance(bad, ValueError)
    batcher.close()


def test_work_that_fails_as_a_whole_does_not_end_the_batcher():
    calls = []

    def work(jobs):
        calls.append(jobs)
        if len(calls) == 1:
            raise RuntimeError("once")
        return jobs

    batcher = Batcher(work, max_items=4)
    with pytest.raises(RuntimeError, match="once"):
        asyncio.run(batcher.submit(1))
    assert asyncio.run(batcher.submit(2)) == 2
    batcher.close()


def test_closing_answers_the_waiting_requests():
    slow = threading.Event()

    def work(jobs):
        slow.wait(5)
        return jobs

    async def submit_all():
        batcher = Batcher(work, max_items=1)
        tasks = [asyncio.ensure_future(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0.05)
        slow.set()
        await asyncio.to_thread(batcher.close)
        return await asyncio.gather(*tasks)

    assert asyncio.run(submit_all()) == [0, 1, 2]


def test_an_item_after_the_end_is_processed_all_the_same():
    batcher = Batcher(lambda jobs: jobs, max_items=4)
    assert asyncio.run(batcher.submit(1)) == 1
    batcher.close()
    assert asyncio.run(batcher.submit(2)) == 2
    batcher.close()
