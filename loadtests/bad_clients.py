"""Clients that do what clients should not: each sends one bad request and reports how the server took it.

Owns: the kinds and what is right for each. A request that is whole and right is answered, however it was sent; another
is refused (4xx) or its connection closed, never answered with 5xx. That the good clients beside them do not suffer is
their levels' part.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.target import Target

WAIT_S = 5.0
PAUSE_S = 0.05
OVERSIZE = 9 << 20
REFUSED = frozenset({"400", "413", "414", "415", "422", "431", "closed"})


@dataclass
class Outcomes:
    """Kind -> outcome -> how often. An outcome is a status, `closed`, `no answer`, or `left` (the client went away)."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def record(self, kind: str, outcome: str) -> None:
        self.counts.setdefault(kind, Counter())[outcome] += 1

    def problems(self) -> list[str]:
        """What was not right: an outcome that its kind does not permit, a kind that was never tried."""
        found = [f"bad client {kind} was never tried" for kind in KINDS if kind not in self.counts]
        for kind, counts in self.counts.items():
            wrong = {outcome: count for outcome, count in counts.items() if outcome not in KINDS[kind].right}
            found += [f"bad client {kind}: {outcome}, {count} times" for outcome, count in wrong.items()]
        return found


def endlessly(target: Target, outcomes: Outcomes) -> None:
    """Try every kind in turn until the greenlet is killed."""
    body = next(target.bodies(1))
    while True:
        for kind, known in KINDS.items():
            try:
                with socket.create_connection((target.host, target.port), timeout=WAIT_S) as connection:
                    outcomes.record(kind, known.act(connection, target, body))
            except TimeoutError:
                outcomes.record(kind, "no answer")
            except OSError:
                outcomes.record(kind, "closed")
            time.sleep(PAUSE_S)


def _head(target: Target, length: int | None, path: str | None = None) -> bytes:
    lines = [f"POST {path or target.path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in target.headers.items()]
    lines += ["Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _answer(connection: socket.socket) -> str:
    """The status of the next answer, or `closed`."""
    return _status(connection.recv(65536))


def _status(received: bytes) -> str:
    return received[9:12].decode(errors="replace") if received.startswith(b"HTTP/1.") else "closed"


def _malformed(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(_head(target, len(body) - 1) + body[:-1])
    return _answer(connection)


def _not_http(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is no HTTP\r\n\r\n")
    return _answer(connection)


def _wrong_fields(connection: socket.socket, target: Target, body: bytes) -> str:
    wrong = json.dumps({"instances": [{"no such field": float("inf")}, None, []]}).encode()
    connection.sendall(_head(target, len(wrong)) + wrong)
    return _answer(connection)


def _nested(connection: socket.socket, target: Target, body: bytes) -> str:
    deep = b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    connection.sendall(_head(target, len(deep)) + deep)
    return _answer(connection)


def _oversize(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(_head(target, OVERSIZE) + b" " * 65536)
    return _answer(connection)


def _oversize_chunks(connection: socket.socket, target: Target, body: bytes) -> str:
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    connection.sendall(_head(target, None))
    for _ in range(OVERSIZE // 65536 + 1):
        connection.sendall(chunk)
    connection.sendall(b"0\r\n\r\n")
    return _answer(connection)


def _long_header(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(_head(target, len(body))[:-2] + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n" + body)
    return _answer(connection)


def _slow(connection: socket.socket, target: Target, body: bytes) -> str:
    """A byte at a time, and then not to the end."""
    for byte in _head(target, len(body))[:20]:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)
    return "left"


def _slow_body(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(_head(target, len(body)))
    for start in range(0, len(body), 16):
        connection.sendall(body[start : start + 16])
        time.sleep(0.01)
    return _answer(connection)


def _half_closed(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(_head(target, len(body)) + body)
    connection.shutdown(socket.SHUT_WR)
    return _answer(connection)


def _leaves(connection: socket.socket, target: Target, body: bytes) -> str:
    """Sends a whole request and does not wait for the answer."""
    connection.sendall(_head(target, len(body)) + body)
    return "left"


def _leaves_in_the_middle(connection: socket.socket, target: Target, body: bytes) -> str:
    connection.sendall(_head(target, len(body)) + body[: len(body) // 2])
    return "left"


def _pipelined(connection: socket.socket, target: Target, body: bytes) -> str:
    """Three requests in one write: three answers, in order."""
    connection.sendall((_head(target, len(body)) + body) * 3)
    received, end = b"", time.monotonic() + WAIT_S
    while received.count(b"HTTP/1.1 200") < 3 and time.monotonic() < end:
        part = connection.recv(65536)
        if not part:
            return "closed"
        received += part
        if b"HTTP/1.1 5" in received:
            return "500"
    return "200" if received.count(b"HTTP/1.1 200") == 3 else "no answer"


@dataclass(frozen=True)
class Kind:
    """`act` sends on an open connection and returns the outcome; `right`: the outcomes that are not a fault."""

    act: Callable[[socket.socket, Target, bytes], str]
    right: frozenset[str]


KINDS = {
    "malformed": Kind(_malformed, REFUSED),
    "not HTTP": Kind(_not_http, REFUSED),
    "wrong fields": Kind(_wrong_fields, REFUSED),
    "deeply nested": Kind(_nested, REFUSED),
    "oversize": Kind(_oversize, REFUSED),
    "oversize in chunks": Kind(_oversize_chunks, REFUSED),
    "long header": Kind(_long_header, REFUSED | {"200"}),
    "slow": Kind(_slow, frozenset({"left", "closed"})),
    "slow body": Kind(_slow_body, frozenset({"200"})),
    "half-closed": Kind(_half_closed, frozenset({"200"})),
    "leaves": Kind(_leaves, frozenset({"left"})),
    "leaves in the middle": Kind(_leaves_in_the_middle, frozenset({"left"})),
    "pipelined": Kind(_pipelined, frozenset({"200"})),
}
