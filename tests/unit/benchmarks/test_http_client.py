"""The client counts whole, good answers only, and keeps the given number of requests under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.http_client import drive, requests, take
from throughline.foundation.errors import ThroughlineError


def test_an_answer_counts_when_it_is_whole():
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
    for cut in range(len(whole)):
        assert take(whole[:cut]) is None
    assert take(whole) == (b"HTTP/1.1 200 OK\r\nContent-Length: 4", b"body")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno", "503"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Content-Length"),
    ],
)
def test_a_bad_answer_is_no_answer(answer, reason):
    with pytest.raises(ThroughlineError, match=reason):
        take(answer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[int, bytes]]  # of one test
    good: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.client_address[1], body))
        content = b'{"score": 1}' if len(self.seen) <= self.good else b'{"error": "x"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (_Handler,), {"seen": [], "good": 10**9})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_every_answer_is_counted_over_as_many_connections_as_clients(server):
    made = requests("/predict", [{"n": 1}, {"n": 2}])
    measured = drive(server.server_address[1], made, clients=3, seconds=0.2, marker=b'"score"')
    seen = server.RequestHandlerClass.seen
    assert measured.answers == len(seen) > 3
    assert len({port for port, _ in seen}) == 3
    assert {body for _, body in seen} == {b'{"n": 1}', b'{"n": 2}'}
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert measured.per_second == pytest.approx(measured.answers / 0.2, rel=0.5)


def test_one_answer_that_is_no_prediction_ends_the_measurement(server):
    server.RequestHandlerClass.good = 5
    with pytest.raises(ThroughlineError, match="Not a prediction"):
        drive(server.server_address[1], requests("/", [{}]), clients=1, seconds=5, marker=b'"score"')
