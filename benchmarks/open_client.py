"""Open arrival at a rate: latencies from the instants at which requests were due.

Owns: sending at the instants of `loadtests.arrivals`, on as many kept connections as are needed. Does not own: what an
answer is (`http_client.take`). Selector `select`, because its timers are exact to 50 µs and those of epoll, as Python
and uvloop use it, to a millisecond.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.http_client import Measured, measured, take
from loadtests.arrivals import Phase, due
from throughline.foundation.errors import ThroughlineError

CONNECTIONS = 64
SEED = 2013


def drive_open(port: int, made: Sequence[bytes], rate: float, seconds: float, marker: bytes) -> Measured:
    """`rate` requests per second on average for `seconds`, whatever the server does. Raises at a bad answer."""

    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=loop) as runner:
        return measured(*runner.run(_drive(port, made, rate, seconds, marker)))


async def _drive(
    port: int, made: Sequence[bytes], rate: float, seconds: float, marker: bytes
) -> tuple[list[float], float]:
    loop = asyncio.get_running_loop()
    pool = _Pool(itertools.cycle(made), marker, loop.create_future())
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: _Connection(pool), "127.0.0.1", port)
    start = time.perf_counter() + 0.01
    for offset in due([Phase(seconds, rate)], SEED):
        if (early := start + offset - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        pool.due(start + offset)
    pool.all_due()
    try:
        await asyncio.wait_for(pool.done, 30)
    except TimeoutError:
        raise ThroughlineError(f"{pool.open} of the requests under load had no answer after 30 s.") from None
    finally:
        pool.close()
    return pool.times, time.perf_counter() - start


class _Pool:
    """Requests that are due wait here for a connection; while they wait their time runs."""

    def __init__(self, bodies: Iterator[bytes], marker: bytes, done: asyncio.Future[None]) -> None:
        self.marker, self.done = marker, done
        self.times: list[float] = []
        self.open = 0
        self.free: list[_Connection] = []
        self.every: list[_Connection] = []
        self._bodies = bodies
        self._waiting: deque[float] = deque()
        self._complete = False

    def due(self, at: float) -> None:
        self.open += 1
        if self.free:
            self.free.pop().send(at, next(self._bodies))
        else:
            self._waiting.append(at)

    def all_due(self) -> None:
        self._complete = True
        self._settle()

    def answered(self, connection: _Connection, at: float) -> None:
        self.times.append(time.perf_counter() - at)
        self.open -= 1
        if self._waiting:
            connection.send(self._waiting.popleft(), next(self._bodies))
        else:
            self.free.append(connection)
        self._settle()

    def failed(self, error: ThroughlineError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def close(self) -> None:
        for connection in self.every:
            connection.close()

    def _settle(self) -> None:
        if self._complete and not self.open and not self.done.done():
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._buffer = b""
        self._at = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._pool.every.append(self)
        self._pool.free.append(self)

    def send(self, at: float, request: bytes) -> None:
        self._at = at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            answer = take(self._buffer)
            if answer is None:
                return
            if self._pool.marker not in answer[1]:
                raise ThroughlineError(f"Not a prediction under load: {answer[1][:200].decode()}")
        except ThroughlineError as error:
            self._pool.failed(error)
            return
        self._buffer = b""
        self._pool.answered(self, self._at)

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.failed(ThroughlineError(f"The server closed a connection under load ({error or 'no reason'})."))

    def close(self) -> None:
        self._transport.close()
