"""A Spark endpoint that does not listen is noticed at once, also while another process works on it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse import spark


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def url(listener: socket.socket) -> str:
    return f"sc://127.0.0.1:{listener.getsockname()[1]}/;user_id=me"


def test_an_open_endpoint_listens_and_a_closed_one_does_not(listener: socket.socket, url: str) -> None:
    assert spark.listens(url)
    listener.close()
    assert not spark.listens(url)


def test_a_session_without_a_server_fails_in_one_line_within_seconds(listener: socket.socket, url: str) -> None:
    listener.close()
    started = time.monotonic()
    with (
        pytest.raises(ThroughlineError, match=r"No Spark Connect server answers at sc://.*throughline up"),
        spark.session(url),
    ):
        pass
    assert time.monotonic() - started < 10


def test_work_of_another_process_is_ended_once_when_the_endpoint_is_lost(
    listener: socket.socket, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "WATCH_INTERVAL_S", 0.05)
    ended = threading.Semaphore(0)
    with spark.watched(url, ended.release) as lost:
        assert not ended.acquire(timeout=0.3)
        listener.close()
        assert ended.acquire(timeout=10)
        assert lost.is_set()
        assert not ended.acquire(timeout=0.3)


def test_work_that_ends_by_itself_is_not_interrupted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "WATCH_INTERVAL_S", 0.05)
    called: list[bool] = []
    with spark.watched(url, lambda: called.append(True)) as lost:
        time.sleep(0.2)
    assert not called
    assert not lost.is_set()


def test_the_address_of_a_bucket_has_the_scheme_s3a(tmp_path: Path) -> None:
    assert spark.address(Settings(home=tmp_path, lakehouse_uri="s3://lake/x").lakehouse) == "s3a://lake/x"
    assert spark.address(tmp_path / "t") == str(tmp_path / "t")
