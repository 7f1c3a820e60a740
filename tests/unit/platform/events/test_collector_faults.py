"""What can never be written is refused at the door; what fails later holds up neither the others nor the collector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from tests.support import shop
from tests.support.disk import file_size_limit
from tests.support.events import binary, structured
from throughline.events import collector
from throughline.events.cloudevent import BATCH, STRUCTURED
from throughline.events.collector import create_app
from throughline.foundation.settings import Settings
from throughline.sources.push import PushIntake
from throughline.usecase import get_usecase

NAME = "flight_delay"
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 2**64 - 1, -(2**63) - 1, 10**400, 1e308])
TEXTS = st.text() | st.sampled_from(["9999-12-31T23:30:00-05:00", "0001-01-01T00:00:00+14:00", "\ud800", "\x00", "1"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*structured()["data"], *(name for name in structured() if name != "data")]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        yield client


def logged(settings: Settings, usecase: str = NAME) -> pl.DataFrame:
    return pl.read_delta(str(settings.table_path(usecase, "monitoring", "inference_log")))


def send(client: TestClient, *events: dict[str, Any]) -> int:
    """In batched mode, as the shipping process does."""
    return client.post("/", content=json.dumps(events), headers={"content-type": BATCH}).status_code


@pytest.mark.parametrize(
    "poison",
    [
        {"model_version": 2**64 - 1},
        {"model_version": 10**30},
        {"model_version": -1},
        {"sequence": str(2**63)},
        {"time": "9999-12-31T23:30:00-05:00"},
        {"wall_time": "0001-01-01T00:00:00+14:00"},
        {"feature_times": {"weather": "9999-12-31T23:30:00-05:00"}},
        {"latency_ms": float("nan")},
        {"latency_ms": float("inf")},
        {"score": float("nan")},
        {"features": {"x": float("inf")}},
        {"features": {"x": {"y": 1}}},
        {"features": {"x": [1]}},
        {"features": [1]},
        {"features": {"x": 2**64 - 1}},
        {"request": {"x": "\ud800"}},
        {"request": {"\ud800": 1}},
        {"flags": ["\udfff"]},
        {"row_key": "\ud800"},
        {"request": {"x": json.loads("[" * 900 + "]" * 900)}},
        {"traffic": "other"},
        {"model_sha256": "x"},
        {"unknown_field": 1},
    ],
    ids=lambda poison: ascii(poison)[:60],
)
def test_an_event_that_cannot_be_written_is_refused_at_the_door_in_every_mode(client, settings, poison):
    bad = structured(2, **poison)
    headers, body = binary({**bad, "source": "urn:test:1"})
    assert client.post("/", content=body, headers=headers).status_code == 422
    assert client.post("/", content=json.dumps(bad), headers={"content-type": STRUCTURED}).status_code == 422
    assert send(client, bad) == 422
    assert send(client, structured(1)) == 202
    assert client.post("/flush").json()["version"] == {NAME: 0}
    assert logged(settings)["sequence"].to_list() == [1]


def test_any_event_is_refused_or_written_and_none_is_more(settings, client):
    """Whatever one field or two are replaced by: nothing accepted is set aside, and nothing gives 500."""
    accepted = []

    @given(changes=st.dictionaries(st.sampled_from([*FIELDS, "more"]), ANYTHING, min_size=1, max_size=2))
    def any_event(changes: dict[str, Any]) -> None:
        event = structured(len(accepted) + 1, **changes)
        answer = client.post("/", content=json.dumps(event), headers={"content-type": STRUCTURED})
        assert answer.status_code in (202, 422), answer.text
        if answer.status_code == 202:
            accepted.append(event["id"])

    any_event()
    assert accepted  # some values fit
    client.post("/flush")
    status = client.get("/status").json()
    assert (status["written"] + status["duplicates"], status["set_aside"]) == (len(accepted), 0)
    assert (status["pending"], status["failure"]) == (0, None)


def test_a_journal_line_of_an_older_schema_and_a_torn_one_are_set_aside(settings):
    folder = settings.serving_home / "spool" / "collector"
    folder.mkdir(parents=True)
    older = {"id": "1", "subject": NAME, "model_version": 2**64 - 1, "a_field_that_is_gone": 1}
    (folder / "000000000007.jsonl").write_bytes(json.dumps(older).encode() + b'\n{"id": "cut\n' + bytes(99) + b"\n{")
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        send(client, structured(1))
        assert client.post("/flush").json()["failed"] == {}
        status = client.get("/status").json()
        assert (status["written"], status["set_aside"], status["pending"], status["problems"]) == (1, 3, 0, [])
        assert "throughline_collector_events_set_aside 3" in client.get("/metrics").text
        assert client.get("/health").status_code == 200
    kept = [json.loads(line) for line in (folder / "set-aside.jsonl").read_text().splitlines()]
    assert [each["line"][:6] for each in kept] == ['{"id":', '{"id":', "\x00" * 6]


@pytest.fixture
def two_usecases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = shop.declare(tmp_path / "usecases", {"push": "order_id", "event_time": "ordered_at"})
    monkeypatch.setattr(collector, "load_usecases", lambda: {NAME: get_usecase(NAME), "shop": orders})


@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_a_table_that_cannot_be_written_holds_up_neither_the_others_nor_pushed_rows(settings, two_usecases, when):
    path = settings.table_path(NAME, "monitoring", "inference_log")
    broken = path / "_delta_log" / f"{0:020d}.json"

    def break_table() -> None:
        broken.parent.mkdir(parents=True)
        broken.write_text("no commit")

    if when == "before the start":
        break_table()
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        if when == "while it runs":
            break_table()
        assert send(client, structured(1), structured(2, subject="shop")) == 202
        row = {"order_id": "o1", "items": 1, "amount": 2.5, "paid": True, "ordered_at": "2024-10-20T10:00:00+01:00"}
        assert client.post("/v1/sources/shop/orders", json=[row]).status_code == 202
        answer = client.post("/flush").json()
        assert (answer["version"], list(answer["failed"])) == ({"shop": 0}, [NAME])
        assert logged(settings, "shop").height == 1
        assert client.post("/v1/sources/shop/orders/flush").json() == {"version": 0}
        status = client.get("/status").json()
        assert (status["pending"], NAME in status["failure"]) == (2, True)
        assert client.get("/health").status_code == 200  # it goes on by itself
        client.post("/flush")
        assert client.get("/status").json()["problems"][0]["since"] == status["problems"][0]["since"]
        broken.unlink()
        written = client.post("/flush").json()
        assert (written["version"], written["failed"]) == ({NAME: 0, "shop": 0}, {})
        assert logged(settings)["sequence"].to_list() == [1]
        assert client.get("/status").json()["pending"] == 0


def test_on_a_full_disk_events_are_not_confirmed_and_it_goes_on_when_there_is_space(client, settings):
    assert send(client, structured(1)) == 202
    for _ in range(3):
        with file_size_limit(900):
            assert send(client, structured(2), structured(3)) == 503
    assert send(client, structured(4)) == 202
    assert client.post("/flush").json()["failed"] == {}
    assert sorted(logged(settings)["sequence"]) == [1, 4]


def test_a_writer_that_ended_makes_the_collector_unhealthy(settings, monkeypatch):
    made: list[PushIntake] = []
    monkeypatch.setattr(collector, "PushIntake", lambda *given: made.append(PushIntake(*given)) or made[-1])
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.get("/health").json() == {"status": "alive"}
        client.portal.call(made[0]._writer.cancel)
        answer = client.get("/health")
        assert (answer.status_code, "restart the collector" in answer.json()["error"]) == (503, True)
        assert "writer ended" in client.get("/status").json()["pushed"]["failure"]
