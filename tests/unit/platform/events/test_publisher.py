"""No event is lost on the server's side: the collector may be away, answer badly, or come back after a restart."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from throughline.events.publisher import Publisher
from throughline.events.schema import InferenceEvent
from throughline.foundation.settings import Settings


class FakeCollector:
    """Confirms with `status` and remembers what it confirmed."""

    def __init__(self, status: int = 202) -> None:
        self.status = status
        self.taken: list[tuple[str, int]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                if outer.status == 202:
                    outer.taken.append((self.headers["ce-source"], int(self.headers["ce-sequence"])))
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    fake = FakeCollector()
    yield fake
    fake.close()


def settings_for(home, port: int) -> Settings:
    return Settings(home=home, port_base=port - 2)  # the collector's is the third port


def make(source: str, sequence: int) -> InferenceEvent:
    now = datetime(2013, 4, 1, tzinfo=UTC)
    return InferenceEvent(
        id=uuid.uuid4(),
        source=source,
        subject="flight_delay",
        time=now,
        sequence=sequence,
        wall_time=now,
        model_name="m",
        model_version=1,
        revision="r",
        role="stable",
        row_key="k",
        request={},
        features={},
        feature_times={},
        flags=[],
        score=0.5,
        decision="late",
        latency_ms=1,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_are_numbered_from_one_and_all_arrive(tmp_path, collector):
    publisher = Publisher(settings_for(tmp_path, collector.port))
    for _ in range(200):
        publisher.publish(make)
    publisher.close()
    assert sorted(collector.taken) == [(publisher.source, number) for number in range(1, 201)]
    assert (publisher.sent, publisher.lost, publisher.waiting) == (200, 0, 0)


def test_events_wait_while_the_collector_refuses_to_take_them(tmp_path, collector):
    collector.status = 503
    publisher = Publisher(settings_for(tmp_path, collector.port))
    for _ in range(3):
        publisher.publish(make)
    time.sleep(0.3)
    assert publisher.waiting == 3
    collector.status = 202
    until(lambda: publisher.waiting == 0)
    assert len(set(collector.taken)) == 3
    publisher.close()


def test_what_is_left_at_the_end_is_sent_by_the_next_start(tmp_path, collector):
    settings = settings_for(tmp_path, collector.port)
    collector.status = 500
    first = Publisher(settings)
    for _ in range(5):
        first.publish(make)
    first.close(timeout_s=0.2)
    assert collector.taken == []

    collector.status = 202
    second = Publisher(settings)
    until(lambda: second.waiting == 0)
    second.close()
    assert sorted(collector.taken) == [(first.source, number) for number in range(1, 6)]


def test_an_event_the_collector_will_never_take_does_not_block_the_others(tmp_path, collector):
    collector.status = 422
    publisher = Publisher(settings_for(tmp_path, collector.port))
    publisher.publish(make)
    until(lambda: publisher.lost == 1)
    collector.status = 202
    publisher.publish(make)
    until(lambda: publisher.sent == 1)
    publisher.close()
    assert collector.taken == [(publisher.source, 2)]


def test_a_full_outbox_loses_events_as_gaps_that_can_be_counted(tmp_path, collector, monkeypatch):
    monkeypatch.setattr("throughline.events.publisher.OUTBOX_LIMIT", 1000)
    collector.status = 503
    publisher = Publisher(settings_for(tmp_path, collector.port))
    for _ in range(10):
        publisher.publish(make)
    assert publisher.lost > 0
    collector.status = 202
    until(lambda: publisher.waiting == 0)
    publisher.publish(make)
    publisher.close()
    assert max(number for _, number in collector.taken) == 11
    assert len(collector.taken) == 11 - publisher.lost
