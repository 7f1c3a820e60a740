"""Messages get a reply each by correlation id, or a dead letter with its reason, and are logged once whatever dies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from serving.stream import GROUP, StreamConsumer
from tests.conftest import needs
from tests.e2e.test_serving import NAME, Place, flush, place
from tests.support.fake_store_server import put_revision
from throughline.services.ports import take_ports
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance

USECASE = get_usecase(NAME)
INSTANCE = example_instance(USECASE)
REQUESTS, REPLIES, DEAD = (f"throughline:{NAME}:{kind}" for kind in ("requests", "replies", "dead"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    needs("redis-server")
    port = take_ports(1)
    options = ["--port", port, "--bind", "127.0.0.1", "--dir", tmp_path_factory.mktemp("redis"), "--save", ""]
    with subprocess.Popen(["redis-server", *map(str, options)], stdout=subprocess.DEVNULL) as server:
        client = redis.Redis(port=port)
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.exceptions.ConnectionError:
                time.sleep(0.05)
        yield client
        server.terminate()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("stream") / "home") as at:
        put_revision(at.settings)
        at.start_collector()
        at.start_server()
        yield at


@pytest.fixture
def consumer(served: Place, store: redis.Redis) -> StreamConsumer:
    store.flushdb()
    return StreamConsumer(served.settings, USECASE, store, idle_ms=0)


def send(store: redis.Redis, correlation: str, body: Any, **fields: str) -> bytes:
    content = body if isinstance(body, str) else json.dumps(body)
    return store.xadd(REQUESTS, {"body": content, "correlation_id": correlation, **fields})


def replies(store: redis.Redis, stream: str = REPLIES) -> dict[str, Any]:
    return {
        fields[b"correlation_id"].decode(): json.loads(fields[b"body"]) for _, fields in store.xrange(stream)
    }  # fmt: skip


def test_each_message_gets_its_reply_where_it_asked_for_it(consumer: StreamConsumer, store: redis.Redis) -> None:
    for n in range(20):
        send(store, f"c{n}", INSTANCE if n % 2 else {"instances": [INSTANCE] * n or [INSTANCE]})
    send(store, "mine", INSTANCE, reply_to="throughline:mine")
    while consumer.step():
        pass
    found = replies(store)
    assert set(found) == {f"c{n}" for n in range(20)}
    assert len(found["c6"]["predictions"]) == 6
    assert set(replies(store, "throughline:mine")) == {"mine"}
    assert store.xpending(REQUESTS, GROUP)["pending"] == 0


@pytest.mark.parametrize(
    ("body", "fields", "reason"),
    [
        ("{", {}, "is not JSON"),
        ("[" * 100_000, {}, "is not JSON"),
        ("7", {}, "one instance or"),
        ({"instances": 7}, {}, "one instance or"),
        (INSTANCE | {"flight": "x"}, {}, "instances[0].flight"),
        (INSTANCE, {"reply_to": "sessions"}, "no stream for replies"),
        (INSTANCE, {"reply_to": REQUESTS}, "no stream for replies"),
    ],
)
def test_what_can_never_be_answered_is_a_dead_letter_and_holds_up_nothing(
    consumer: StreamConsumer, store: redis.Redis, body: Any, fields: dict[str, str], reason: str
) -> None:
    number = send(store, "bad", body, **fields)
    send(store, "good", INSTANCE)
    while consumer.step():
        pass
    ((_, dead),) = store.xrange(DEAD)
    assert (dead[b"message"], dead[b"correlation_id"]) == (number, b"bad")
    assert reason in dead[b"reason"].decode()
    assert set(replies(store)) == {"good"}
    assert store.xpending(REQUESTS, GROUP)["pending"] == 0


def test_a_message_answered_twice_is_logged_once(
    consumer: StreamConsumer, served: Place, store: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(store, "twice", {"instances": [INSTANCE] * 3})

    class Killed(Exception):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(consumer, "_finish", killed)
        with pytest.raises(Killed):
            consumer.step()
    assert consumer.step() == 1
    ids = [prediction["prediction_id"] for prediction in replies(store)["twice"]["predictions"]]
    flush(served)
    logged = served.table()["id"].to_list()
    assert [logged.count(each) for each in ids] == [1, 1, 1]


def test_messages_wait_while_the_server_is_away_and_a_killed_consumer_loses_none(
    tmp_path: Path, store: redis.Redis
) -> None:
    store.flushdb()
    with place(tmp_path / "home") as at:
        put_revision(at.settings)
        at.start_server()
        first = consumer_process(at, store)
        send(store, "before", INSTANCE)
        wait_for(lambda: set(replies(store)) == {"before"})
        at.end("model-server")
        for n in range(30):
            send(store, f"c{n}", INSTANCE)
        wait_for(lambda: store.xpending(REQUESTS, GROUP)["pending"] > 0)
        first.kill()
        first.wait(10)
        at.start_server()
        later = StreamConsumer(at.settings, USECASE, store, idle_ms=0)
        thread = threading.Thread(target=later.run)
        thread.start()
        wait_for(lambda: set(replies(store)) == {"before", *(f"c{n}" for n in range(30))})
        later.stopping.set()
        thread.join(20)
        assert not thread.is_alive()
        assert store.xlen(DEAD) == 0
        assert store.xpending(REQUESTS, GROUP)["pending"] == 0


def consumer_process(at: Place, store: redis.Redis) -> subprocess.Popen[bytes]:
    port = store.connection_pool.connection_kwargs["port"]
    environment = {
        "THROUGHLINE_HOME": str(at.settings.home),
        "THROUGHLINE_PORT_BASE": str(at.settings.port_base),
        "THROUGHLINE_ONLINE_STORE": f"redis://127.0.0.1:{port}/0",
        "PATH": "/usr/bin:/bin",
    }
    with (at.settings.logs / "stream.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "serving.stream", NAME], env=environment, stdout=log, stderr=log
        )  # fmt: skip


def test_the_process_ends_cleanly_when_it_is_stopped(served: Place, store: redis.Redis) -> None:
    store.flushdb()
    process = consumer_process(served, store)
    wait_for(lambda: store.exists(REQUESTS) == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def wait_for(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
