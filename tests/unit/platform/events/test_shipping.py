"""No event is lost on the server's side: the collector may be away, answer badly, or the shipping process be killed."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support.disk import file_size_limit
from tests.support.events import prediction
from throughline.events import outbox as outboxes
from throughline.events import spool
from throughline.events.cloudevent import BATCH, STRUCTURED
from throughline.events.outbox import Outbox
from throughline.events.shipping import read_batch
from throughline.events.shipping_process import ShippingProcess
from throughline.foundation.settings import Settings, load_settings
from throughline.journal import set_aside


class FakeCollector:
    """Confirms with `status` and remembers what it confirmed; it never takes events whose decision is `refused`."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.status = 202
        self.batches = True
        self.requests: list[tuple[str, str | None]] = []  # paths and tokens
        self.taken: list[tuple[str, int]] = []
        self.sizes: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                read = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append((self.path, self.headers["authorization"]))
                status, answer = outer.answer(self.headers["content-type"], read)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, kind: str, read: object) -> tuple[int, object]:
        if self.status != 202:
            return self.status, {"error": "not now"}
        if kind == BATCH and not self.batches:
            return 415, {"error": "one at a time"}
        assert kind in (BATCH, STRUCTURED)
        events = read if isinstance(read, list) else [read]
        refused = [number for number, each in enumerate(events) if each["data"]["decision"] == "refused"]
        if refused and kind == STRUCTURED:
            return 422, {"error": "decision"}
        self.sizes.append(len(events))
        self.taken += [
            (each["source"], int(each["sequence"])) for number, each in enumerate(events) if number not in refused
        ]
        return 202, {"refused": [{"position": number, "error": "decision"} for number in refused]}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[FakeCollector]:
    fake = FakeCollector()
    yield fake
    fake.close()


class Sender:
    """An outbox with its shipping process."""

    def __init__(self, home: Path, collector: FakeCollector, worker: str = "0") -> None:
        self.settings = Settings(home=home, collector_url=f"http://127.0.0.1:{collector.port}")
        self.outbox = Outbox(self.settings.outboxes / worker)
        self._shipping: ShippingProcess | None = None

    def publish(self, events: int, **changes: object) -> None:
        for _ in range(events):
            self.outbox.publish([prediction(**changes)])

    def start(self, drain_s: float = 5.0) -> ShippingProcess:
        self._shipping = ShippingProcess(self.settings, drain_s)
        return self._shipping

    def close(self) -> None:
        if self._shipping is not None:
            self._shipping.close()
        self.outbox.close()

    @property
    def kept_aside(self) -> list[dict[str, str]]:
        path = self.settings.outboxes / set_aside.FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def sender(tmp_path: Path, collector: FakeCollector) -> Iterator[Sender]:
    made = Sender(tmp_path, collector)
    yield made
    made.close()


def ended(pid: int) -> bool:
    """Whether a process that is nobody's child any more ended; not every machine collects such."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def self_signed(path: Path) -> Path:
    """A key and a certificate of localhost, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@pytest.mark.parametrize("trusted", [True, False])
def test_events_go_over_tls_to_the_path_of_the_collectors_address_with_the_token(tmp_path, monkeypatch, trusted):
    certificate = self_signed(tmp_path / "localhost.pem")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    collector = FakeCollector(certificate)
    settings = load_settings(
        home=tmp_path, collector_url=f"https://localhost:{collector.port}/events/in/", token="s3cret"
    )
    outbox, shipping = Outbox(settings.outboxes / "0"), ShippingProcess(settings, drain_s=0)
    outbox.publish([prediction()])
    if trusted:
        until(lambda: outbox.waiting == 0)
        assert collector.requests == [("/events/in", "Bearer s3cret")]
    else:
        until(lambda: outbox.shipped.failure is not None)
        assert "certificate" in outbox.shipped.failure["what"].lower()
        assert (collector.requests, outbox.waiting) == ([], 1)
    shipping.close()
    outbox.close()
    collector.close()


def numbered(sender: Sender, numbers: range) -> list[tuple[str, int]]:
    return [(sender.outbox.source, number) for number in numbers]


def test_events_are_numbered_from_one_and_arrive_in_order_in_batches(sender, collector):
    sender.publish(1200)
    assert sender.outbox.waiting == 1200
    sender.start()
    until(lambda: sender.outbox.waiting == 0)
    assert collector.taken == numbered(sender, range(1, 1201))
    assert collector.sizes == [500, 500, 200]
    shipped = sender.outbox.shipped
    assert (shipped.sent, shipped.set_aside, shipped.failure, sender.outbox.lost) == (1200, 0, None, 0)


def test_events_wait_while_the_collector_does_not_take_them(sender, collector):
    collector.status = 503
    sender.publish(3)
    sender.start()
    until(lambda: sender.outbox.shipped.failure is not None)
    assert (sender.outbox.waiting, "503" in sender.outbox.shipped.failure["what"]) == (3, True)
    collector.status = 202
    until(lambda: sender.outbox.waiting == 0)
    assert collector.taken == numbered(sender, range(1, 4))
    assert sender.outbox.shipped.failure is None


def test_what_is_left_at_the_end_is_sent_by_the_next_start(tmp_path, collector):
    collector.status = 500
    first = Sender(tmp_path, collector)
    first.publish(5)
    first.start(drain_s=0.1)
    first.close()
    assert collector.taken == []

    collector.status = 202
    second = Sender(tmp_path, collector)
    assert second.outbox.waiting == 5
    second.publish(2)
    second.start()
    second.close()
    assert collector.taken == numbered(first, range(1, 6)) + numbered(second, range(1, 3))


@pytest.mark.parametrize("batches", [True, False])
def test_an_event_the_collector_will_never_take_is_set_aside_and_does_not_hold_up_the_others(
    sender, collector, batches
):
    collector.batches = batches  # another receiver may take events one by one only
    sender.publish(3)
    sender.publish(1, decision="refused")
    sender.publish(3)
    sender.start()
    until(lambda: sender.outbox.waiting == 0)
    assert collector.taken == numbered(sender, range(1, 4)) + numbered(sender, range(5, 8))
    (kept,) = sender.kept_aside
    assert ("decision" in kept["reason"], json.loads(kept["line"])["sequence"]) == (True, "4")
    assert (sender.outbox.shipped.sent, sender.outbox.shipped.set_aside) == (6, 1)


def test_a_killed_shipping_process_is_started_again_and_nothing_is_lost(sender, collector):
    shipping = sender.start()
    sender.publish(100)
    until(lambda: bool(collector.taken))
    killed = shipping.pid
    os.kill(killed, signal.SIGKILL)
    sender.publish(100)
    until(lambda: shipping.pid != killed and sender.outbox.waiting == 0)
    assert set(collector.taken) == set(numbered(sender, range(1, 201)))
    assert shipping.alive


def test_the_shipping_process_drains_and_ends_when_its_parent_is_killed(tmp_path, collector):
    parent = (
        "import sys, time; from throughline.events.shipping_process import ShippingProcess;"
        "from throughline.foundation.settings import load_settings;"
        "print(ShippingProcess(load_settings()).pid, flush=True); time.sleep(60)"
    )
    environment = {
        **os.environ,
        "THROUGHLINE_HOME": str(tmp_path),
        "THROUGHLINE_COLLECTOR_URL": f"http://127.0.0.1:{collector.port}",
    }
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    sender = Sender(tmp_path, collector)
    sender.publish(5)
    until(lambda: ended(pid))
    sender.start()
    until(lambda: sender.outbox.waiting == 0)
    sender.close()
    assert set(collector.taken) == set(numbered(sender, range(1, 6)))


def test_the_outboxes_of_several_workers_are_sent_by_one_process_also_those_of_a_worker_that_is_gone(
    tmp_path, collector
):
    gone, here = Sender(tmp_path, collector, "7"), Sender(tmp_path, collector, "0")
    gone.publish(3)
    gone.outbox.close()
    here.publish(2)
    here.start()
    until(lambda: here.outbox.waiting == gone.outbox.waiting == 0)
    here.close()
    assert sorted(collector.taken) == sorted(numbered(gone, range(1, 4)) + numbered(here, range(1, 3)))


def test_shipped_segments_are_removed_and_the_numbers_of_lines_go_on(sender, collector, monkeypatch):
    monkeypatch.setattr(outboxes, "SEGMENT_BYTES", 5000)
    sender.publish(50)
    assert len(spool.segments(sender.settings.outboxes / "0")) > 5
    sender.start()
    until(lambda: sender.outbox.waiting == 0 and len(spool.segments(sender.settings.outboxes / "0")) == 1)
    sender.publish(50)
    until(lambda: sender.outbox.waiting == 0)
    assert collector.taken == numbered(sender, range(1, 101))


def test_half_a_line_at_the_end_of_a_power_loss_is_set_aside_and_what_follows_is_sent(tmp_path, collector):
    """Both places: at the end of a segment, which the next start leaves, and as a block of zeros within one."""
    before = Sender(tmp_path, collector)
    before.publish(2)
    before.outbox.close()
    folder = before.settings.outboxes / "0"
    (first,) = spool.segments(folder)
    with spool.segment_path(folder, first).open("ab") as file:
        file.write(b'{"specversion":"1.0","id":"cut\n' + bytes(4096) + b"\n" + b'{"half')
    after = Sender(tmp_path, collector)
    after.publish(2)
    after.start()
    until(lambda: after.outbox.waiting == 0)
    after.close()
    assert collector.taken == numbered(before, range(1, 3)) + numbered(after, range(1, 3))
    assert len(after.kept_aside) == 2
    assert all("power loss" in kept["reason"] for kept in after.kept_aside)


DAMAGED = [
    b"",
    b"{",
    b"[]",
    bytes(40),
    b'{"sent": 1, "set_aside": 0, "failure": null, "cursors": {"0": {"segment": "x", "offset": 0, "line": 0}}}',
    b'{"sent": 1, "set_aside": 0, "failure": "x", "cursors": {}}',
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_after_a_damaged_status_file_everything_is_sent_again(sender, collector, damaged):
    sender.publish(3)
    (sender.settings.outboxes / spool.STATUS).write_bytes(damaged)
    assert sender.outbox.waiting == 3
    sender.start()
    until(lambda: sender.outbox.waiting == 0)
    assert collector.taken == numbered(sender, range(1, 4))


def test_a_segment_that_is_shorter_than_the_cursor_is_sent_again(tmp_path):
    outbox = Outbox(tmp_path / "0")
    outbox.publish([prediction()])
    (first,) = spool.segments(tmp_path / "0")
    batch = read_batch(tmp_path / "0", spool.Cursor(first, 10**6, first + 50))
    assert batch is not None
    assert (len(batch.lines), batch.after.line) == (1, 1)


def test_a_full_outbox_loses_events_as_gaps_that_can_be_counted(sender, collector, monkeypatch):
    monkeypatch.setattr(outboxes, "OUTBOX_LIMIT", 2000)
    monkeypatch.setattr(outboxes, "SEGMENT_BYTES", 1000)
    sender.publish(20)
    lost = sender.outbox.lost
    assert 0 < lost < 20
    assert sender.outbox.waiting == 20 - lost
    sender.start()
    until(lambda: sender.outbox.waiting == 0)
    until(lambda: sender.publish(1) or sender.outbox.lost < sender.outbox._sequence - 20 + lost)
    until(lambda: sender.outbox.waiting == 0)
    assert len(collector.taken) == sender.outbox._sequence - sender.outbox.lost
    assert max(number for _, number in collector.taken) == sender.outbox._sequence


@given(requests=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3000)), max_size=12))
def test_on_a_full_disk_each_event_is_whole_or_counted_as_lost(tmp_path_factory, requests):
    """A real limit of the size of files: a write stops in the middle of a line, and the next ones write nothing."""
    folder = tmp_path_factory.mktemp("outbox") / "0"
    outbox = Outbox(folder)
    for events, limit in requests:
        with file_size_limit(limit):
            outbox.publish([prediction() for _ in range(events)])
    outbox.publish([prediction()])
    published = sum(events for events, _ in requests) + 1
    read, cursor = [], None
    while (batch := read_batch(folder, cursor)) is not None:
        read += batch.lines
        cursor = batch.after
        if batch.finished:
            spool.segment_path(folder, cursor.segment).unlink()
    whole = [json.loads(line) for line in read if b"\0" not in line]
    sequences = [int(each["sequence"]) for each in whole]
    assert sequences == sorted(set(sequences))
    assert (sequences[-1], len(sequences)) == (published, published - outbox.lost)
    assert outbox.waiting == len(read)
    outbox.close()


@pytest.mark.parametrize("bad", [{"row_key": "\ud800"}, {"model_version": 2**64}, {"features": {1: 2}}])
def test_an_event_that_json_cannot_hold_is_counted_as_lost_and_the_others_are_kept(sender, bad):
    sender.outbox.publish([prediction(), prediction(**bad), prediction()])
    assert (sender.outbox.lost, sender.outbox.waiting) == (1, 2)


def test_a_second_process_does_not_use_an_outbox(sender):
    from throughline.foundation.errors import ThroughlineError

    with pytest.raises(ThroughlineError, match="in use by another process"):
        Outbox(sender.settings.outboxes / "0")


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("throughline.events.outbox", {"pydantic", "httpx", "polars", "numpy", "http"}),
        ("throughline.events.shipping", {"pydantic", "httpx", "polars", "numpy", "asyncio", "starlette"}),
    ],
)
def test_outbox_and_shipping_import_little(module, unused):
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert unused & set(json.loads(shown.stdout)) == set()
