"""A client that costs little next to the server it measures: kept connections and prepared bytes.

Owns: sending, counting and timing. Does not own: the requests. Only whole 200 answers with the marker count;
anything else ends the measurement.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from throughline.foundation.errors import ThroughlineError

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


@dataclass(frozen=True)
class Measured:
    """Answers of a phase; times in milliseconds, rate in answers per second."""

    answers: int
    per_second: float
    p50_ms: float
    p99_ms: float


def requests(path: str, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
    """POST requests, ready to send."""
    made = []
    for body in bodies:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        made.append(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return made


def take(buffer: bytes) -> tuple[bytes, bytes] | None:
    """(head, body) of an answer that is whole; None while it is not. Raises when it is not a 200 with a length."""
    head, found, rest = buffer.partition(_END)
    if not found:
        return None
    if not head.startswith(b"HTTP/1.1 200"):
        raise ThroughlineError(f"Not a 200 under load: {head.splitlines()[0].decode()} {rest[:200].decode()}")
    lines = [line for line in head.lower().splitlines() if line.startswith(_LENGTH)]
    if not lines:
        raise ThroughlineError("An answer under load has no Content-Length: its end is unknown.")
    length = int(lines[0][len(_LENGTH) :])
    return (head, rest) if len(rest) >= length else None


def drive(port: int, made: Sequence[bytes], clients: int, seconds: float, marker: bytes) -> Measured:
    """Keep `clients` requests under way on loopback for `seconds`. Raises `ThroughlineError` at a bad answer."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return measured(*runner.run(_drive(port, made, clients, seconds, marker)))


def measured(times: Sequence[float], lasted: float) -> Measured:
    """Of the seconds that each answer took, and all of them together. Raises when there was none."""
    if not times:
        raise ThroughlineError("No answer came while the load ran.")
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [*times] * 99
    return Measured(len(times), len(times) / lasted, cuts[49] * 1000, cuts[98] * 1000)


async def _drive(
    port: int, made: Sequence[bytes], clients: int, seconds: float, marker: bytes
) -> tuple[list[float], float]:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    queue = itertools.cycle(made)
    start = time.perf_counter()
    callers = [_Caller(queue, start + seconds, marker, times, loop.create_future()) for _ in range(clients)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, "127.0.0.1", port)
    await asyncio.wait_for(asyncio.gather(*(caller.done for caller in callers)), seconds + 30)
    return times, time.perf_counter() - start


class _Caller(asyncio.Protocol):
    def __init__(
        self, queue: Iterator[bytes], until: float, marker: bytes, times: list[float], done: asyncio.Future[None]
    ) -> None:
        self.done = done
        self._queue, self._until, self._marker, self._times = queue, until, marker, times
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._queue))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            answer = take(self._buffer)
            if answer is None:
                return
            if self._marker not in answer[1]:
                raise ThroughlineError(f"Not a prediction under load: {answer[1][:200].decode()}")
        except ThroughlineError as error:
            self._end(error)
            return
        now = time.perf_counter()
        self._times.append(now - self._sent)
        self._buffer = b""
        if now < self._until:
            self._send()
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ThroughlineError(f"The server closed a connection under load ({error or 'no reason'})."))

    def _end(self, error: ThroughlineError | None) -> None:
        if self.done.done():
            return
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)
        self._transport.close()
