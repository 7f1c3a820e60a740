"""Pushed rows are accepted as declared or refused by field, kept once by their id, and safe once confirmed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from tests.support import shop
from throughline.events import collector
from throughline.events.collector import MAX_ROWS_BODY, create_app
from throughline.foundation.clock import ReplayClock
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import history
from throughline.sources.push import BadRow, PushIntake
from throughline.usecase import UseCase

NOW = datetime(2024, 10, 29, 12, tzinfo=UTC)
ROW = {"order_id": "o1", "items": 1, "amount": 2.5, "paid": True, "ordered_at": "2024-10-29T10:00:00+01:00"}
ADDRESS = "/v1/sources/shop/orders"


@pytest.fixture
def usecase(tmp_path: Path) -> UseCase:
    return shop.declare(tmp_path / "usecases", {"push": "order_id", "event_time": "ordered_at"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    at(settings, NOW)
    return settings


@pytest.fixture
def client(settings: Settings, usecase: UseCase, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(collector, "load_usecases", lambda: {"shop": usecase})
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield client


def at(settings: Settings, now: datetime) -> None:
    ReplayClock(settings.home / "clock.json", shop.BEGAN).advance_to(now)


def received(settings: Settings) -> pl.DataFrame:
    return pl.read_delta(str(settings.table_path("shop", "received", "orders"))).sort("id")


def row(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**ROW, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("\n".join(json.dumps(row(order_id=f"o{n}")) for n in range(3)), id="lines"),
        pytest.param("\n\n" + "\r\n".join(json.dumps(row(order_id=f"o{n}")) for n in range(3)) + "\n\n", id="ragged"),
        pytest.param(json.dumps([row(order_id=f"o{n}") for n in range(3)], indent=2), id="array"),
    ],
)
def test_rows_are_accepted_as_lines_and_as_an_array(client: TestClient, settings: Settings, body: str) -> None:
    answer = client.post(ADDRESS, content=body)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 3})
    assert client.post(f"{ADDRESS}/flush").json() == {"version": 0}
    assert received(settings)["id"].to_list() == ["o0", "o1", "o2"]


def test_a_row_is_known_when_it_arrives_by_the_data_clock(client: TestClient, settings: Settings) -> None:
    client.post(ADDRESS, json=[row()])
    client.post(f"{ADDRESS}/flush")
    (kept,) = received(settings).to_dicts()
    assert kept["available_at"] == NOW
    assert kept["event_time"] == datetime(2024, 10, 29, 9, tzinfo=UTC)
    assert kept["received_at"] > datetime(2026, 1, 1, tzinfo=UTC)  # the wall clock's, beside it
    assert str(kept["day"]) == "2024-10-29"


def test_a_row_may_have_an_earlier_knowledge_time_but_not_a_future_one(client: TestClient, settings: Settings) -> None:
    answer = client.post(
        ADDRESS, json=[row(available_at="2024-10-27T22:59:59Z"), row(order_id="o2", available_at=None)]
    )
    assert answer.status_code == 202
    refused = client.post(ADDRESS, json=[row(order_id="o3", available_at="2024-10-29T12:00:00.000001Z")])
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("rows[0].available_at: 2024-10-29T12:00:00.000001+00:00 is after")
    client.post(f"{ADDRESS}/flush")
    days = received(settings)["day"].cast(str).to_list()
    assert days == ["2024-10-27", "2024-10-29"]  # local days


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row(items="1"), "rows[1].items: "),
        (row(items=1.5), "rows[1].items: "),
        (row(items=2**63), "rows[1].items: "),
        (row(amount="2.5"), "rows[1].amount: "),
        (row(amount=None), "rows[1].amount: "),
        (row(amount=...), "rows[1].amount: Field required"),
        (row(paid=1), "rows[1].paid: "),
        (row(note=5), "rows[1].note: "),
        (row(ordered_at="2024-10-29T10:00:00"), "rows[1].ordered_at: has no time zone"),
        (row(ordered_at=1730192400), "rows[1].ordered_at: "),
        (row(ordered_at="0001-01-01T00:00:00+14:00"), "rows[1].ordered_at: lies outside"),
        (row(colour="blue"), "rows[1].colour: "),
        ("o1", "rows[1]: "),
        ({}, "rows[1].ordered_at: "),
    ],
)
def test_a_row_that_is_not_as_declared_is_refused_by_field_and_nothing_of_its_body_is_kept(
    client: TestClient, settings: Settings, bad: Any, problem: str
) -> None:
    answer = client.post(ADDRESS, json=[row(), bad])
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(problem)
    assert "\n" not in answer.json()["error"]
    assert client.post(f"{ADDRESS}/flush").json() == {"version": None}
    assert client.get("/status").json()["pushed"]["rejected"] == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "body: no rows"),
        (b" \n ", "body: no rows"),
        (b"[]", "body: no rows"),
        (b"[1, 2", "body: not JSON"),
        (b"[" * 100_000, "body: not JSON"),
        (b'{"order_id":', "line 1: "),
        (json.dumps(row()).encode() + b"\nnonsense", "line 2: "),
        (b"\xff\xfe\n\x80", "line 1: "),
        (json.dumps(row(amount=1)).replace("1,", "NaN,", 1).encode(), "line 1"),
    ],
)
def test_a_body_that_is_no_rows_is_refused_by_line(client: TestClient, body: bytes, problem: str) -> None:
    answer = client.post(ADDRESS, content=body)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(problem)


def test_a_body_that_is_too_long_is_refused(client: TestClient) -> None:
    answer = client.post(ADDRESS, content=b" " * (MAX_ROWS_BODY + 1))
    assert (answer.status_code, str(MAX_ROWS_BODY) in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize("where", ["/v1/sources/shop/planes", "/v1/sources/flight_delay/orders"])
def test_a_table_that_takes_no_rows_is_not_found(client: TestClient, where: str) -> None:
    for address in (where, f"{where}/flush"):
        answer = client.post(address, json=[row()])
        assert answer.status_code == 404
        assert "there are: shop/orders" in answer.json()["error"]


def test_a_row_sent_again_is_kept_once_and_stays_known_from_the_first_time(
    client: TestClient, settings: Settings
) -> None:
    client.post(ADDRESS, json=[row(), row(), row(order_id="o2")])
    client.post(f"{ADDRESS}/flush")
    at(settings, NOW + shop.DAY)
    client.post(ADDRESS, json=[row(items=99), row(order_id="o3")])
    client.post(f"{ADDRESS}/flush")
    kept = received(settings)
    assert kept["id"].to_list() == ["o1", "o2", "o3"]
    assert kept["available_at"].to_list() == [NOW, NOW, NOW + shop.DAY]
    assert json.loads(kept["row"][0])["items"] == 1
    counted = client.get("/status").json()["pushed"]
    assert counted == {
        "received": 5, "written": 3, "duplicates": 2, "rejected": 0, "set_aside": 0, "pending": 0, "failure": None,
        "problems": [],
    }  # fmt: skip
    assert "throughline_collector_rows_duplicates_total 2" in client.get("/metrics").text
    # events and rows do not wait for each other, nor are they counted together
    assert client.get("/status").json()["received"] == 0


def test_nothing_new_writes_no_version(client: TestClient, settings: Settings) -> None:
    for _ in range(3):
        client.post(ADDRESS, json=[row()])
        assert client.post(f"{ADDRESS}/flush").json() == {"version": 0}
    assert len(history(settings.table_path("shop", "received", "orders"))) == 1


def test_beyond_loopback_rows_need_the_token(tmp_path: Path, usecase: UseCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "load_usecases", lambda: {"shop": usecase})
    with TestClient(
        create_app(Settings(home=tmp_path, bind="0.0.0.0", token="s3cret")), base_url="http://localhost"
    ) as client:
        assert client.post(ADDRESS, json=[row()]).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert client.post(ADDRESS, json=[row()], headers=right).status_code == 202
        assert client.post(f"{ADDRESS}/flush").status_code == 401


def test_a_confirmed_row_survives_a_kill_before_and_after_the_commit(
    settings: Settings, usecase: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two moments a kill can fall in: nothing is committed, or all is and the journal still holds it."""

    def die(_: object) -> None:
        raise SystemExit

    killed = PushIntake(settings, {"shop": usecase})
    body = json.dumps([row(), row(order_id="o2")]).encode()
    killed._journal.append(killed.check("shop", "orders", body), sync=True)
    killed._journal._held.close()
    killed_again = PushIntake(settings, {"shop": usecase})
    monkeypatch.setattr(killed_again._journal, "remove", die)
    with pytest.raises(SystemExit):
        killed_again.flush()
    killed_again._journal._held.close()
    assert received(settings).height == 2
    after = PushIntake(settings, {"shop": usecase})
    assert after.pending == 2
    after.flush()
    assert received(settings).height == 2
    assert (after.duplicates, after.pending) == (2, 0)
    after.close()


def test_a_table_that_is_no_longer_declared_loses_no_confirmed_row(settings: Settings, usecase: UseCase) -> None:
    before = PushIntake(settings, {"shop": usecase})
    before._journal.append(before.check("shop", "orders", json.dumps([row()]).encode()), sync=True)
    before._journal._held.close()
    after = PushIntake(settings, {})
    after.close()
    assert received(settings).height == 1


@given(body=st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "x"]), inner, max_size=6),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_body_is_accepted_as_rows_or_refused_in_one_line(body: bytes) -> None:
    try:
        assert _INTAKE.check("shop", "orders", body)
    except BadRow as error:
        refused = str(error)
    else:
        refused = ""
    assert "\n" not in refused


@pytest.fixture(autouse=True, scope="module")
def _intake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One intake for all that hypothesis sends."""
    global _INTAKE
    folder = tmp_path_factory.mktemp("intake")
    usecase = shop.declare(folder, {"push": "order_id", "event_time": "ordered_at"})
    _INTAKE = PushIntake(Settings(home=folder / "home"), {"shop": usecase})
    yield
    _INTAKE.close()


_INTAKE: PushIntake
