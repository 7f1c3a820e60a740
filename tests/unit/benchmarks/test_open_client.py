"""Requests leave when they are due; what waits for a slow server is charged with the waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.http_client import requests
from benchmarks.open_client import drive_open
from throughline.foundation.errors import ThroughlineError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stalls_until: float
    content: bytes

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if (left := self.stalls_until - time.monotonic()) > 0:
            time.sleep(left)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections are opened at once
    daemon_threads = True


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (_Handler,), {"stalls_until": 0.0, "content": b'{"score": 1}'})
    with _Server(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_as_many_requests_are_sent_as_are_due(server):
    measured = drive_open(server.server_address[1], requests("/", [{}]), rate=100, seconds=1, marker=b'"score"')
    assert 50 < measured.answers < 150
    assert 0 < measured.p50_ms <= measured.p99_ms


def test_every_request_due_while_the_server_stalls_is_charged(server):
    server.RequestHandlerClass.stalls_until = time.monotonic() + 1.0
    measured = drive_open(server.server_address[1], requests("/", [{}]), rate=300, seconds=1, marker=b'"score"')
    assert measured.answers > 200
    assert measured.p50_ms > 100  # of requests that are due evenly over a second of standstill


def test_an_answer_that_is_no_prediction_ends_the_measurement(server):
    server.RequestHandlerClass.content = b'{"error": "x"}'
    with pytest.raises(ThroughlineError, match="Not a prediction"):
        drive_open(server.server_address[1], requests("/", [{}]), rate=50, seconds=1, marker=b'"score"')
