"""Reported outcomes: checked against the label, kept once, and waiting for their prediction until they expire."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient

from tests.support.events import event, rows
from throughline.events import waiting
from throughline.events.collector import create_app
from throughline.events.feedback import SCHEMA
from throughline.events.feedback_intake import FeedbackIntake
from throughline.events.table import LogTable
from throughline.foundation.clock import ReplayClock
from throughline.foundation.settings import Settings
from throughline.usecase import get_usecase

NAME = "flight_delay"
USECASE = get_usecase(NAME)
NOW = datetime(2013, 4, 10, 12, tzinfo=UTC)
ADDRESS = f"/v1/feedback/{NAME}"
ONE = "6f2c2c5e-8a52-4b1c-9a55-0d5b1c9d2f10"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path / "home")
    at(made, NOW)
    return made


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), "http://localhost", raise_server_exceptions=False) as client:
        yield client


def at(settings: Settings, now: datetime) -> None:
    ReplayClock(settings.home / "clock.json", USECASE.clock_start(settings)).advance_to(now)


def report(**changes: Any) -> dict[str, Any]:
    return {"prediction_id": ONE, "value": 1, **changes}


def kept(settings: Settings) -> pl.DataFrame:
    return pl.read_delta(str(settings.table_path(NAME, "monitoring", "feedback"))).sort("event_time", "source")


def test_a_report_is_a_row_with_event_time_knowledge_time_and_the_id_of_its_ingestion(client, settings):
    assert client.post(ADDRESS, json=report(time="2013-04-10T07:30:00-04:00", source="ops")).status_code == 202
    assert client.post("/flush").json()["feedback"] == {"version": {NAME: 0}, "failed": {}}
    (row,) = kept(settings).to_dicts()
    assert set(row) == set(SCHEMA)
    assert (row["prediction_id"], row["label"], row["source"]) == (ONE, 1, "ops")
    assert row["event_time"] == datetime(2013, 4, 10, 11, 30, tzinfo=UTC)
    assert (row["available_at"], row["day"]) == (NOW, NOW.date())
    assert row["received_at"].year >= 2026  # the wall clock's
    assert uuid.UUID(row["id"])


def test_a_report_is_kept_once_by_prediction_source_and_time_and_a_correction_beside_it(client, settings):
    early, late = "2013-04-10T10:00:00Z", "2013-04-10T11:00:00Z"
    sent = [
        report(time=early), report(time=early, value=0), report(time="2013-04-10T06:00:00-04:00"),  # the same three
        report(time=late, value=0), report(time=early, source="other"), report(), report(),
    ]  # fmt: skip
    for each in sent:
        assert client.post(ADDRESS, json=each).status_code == 202
    assert client.post(ADDRESS, json=sent).json() == {"accepted": 7, "refused": []}
    client.post("/flush")
    assert kept(settings).select("event_time", "source", "label").rows() == [
        (datetime(2013, 4, 10, 10, tzinfo=UTC), "api", 1),
        (datetime(2013, 4, 10, 10, tzinfo=UTC), "other", 1),
        (datetime(2013, 4, 10, 11, tzinfo=UTC), "api", 0),
        (NOW, "api", 1),
    ]


def test_true_and_false_are_the_label_as_1_and_0_are(client, settings):
    ids = [str(uuid.uuid4()) for _ in range(4)]
    reports = [report(prediction_id=id_, value=value) for id_, value in zip(ids, (0, 1, False, True), strict=True)]
    assert client.post(ADDRESS, json=reports).json()["accepted"] == 4
    client.post("/flush")
    labels = dict(kept(settings).select("prediction_id", "label").rows())
    assert [labels[id_] for id_ in ids] == [0, 1, 0, 1]


BAD = [
    (report(value=2), "value: must be 0, 1, true or false"),
    (report(value=1.0), "value: must be"),
    (report(value="1"), "value: must be"),
    (report(value=None), "value: must be"),
    ({"prediction_id": ONE}, "value: Field required"),
    (report(prediction_id="7"), "prediction_id: "),
    (report(time="2013-04-10T10:00:00"), "time: "),
    (report(time="2013-04-10T12:00:00.000001Z"), "time: .* is after the data clock"),
    (report(time="9999-12-31T23:30:00-05:00"), "time: lies outside"),
    (report(source=""), "source: "),
    (report(comment="x"), "comment: "),
    (7, ""),
]


@pytest.mark.parametrize(("bad", "problem"), BAD)
def test_a_report_that_is_none_is_refused_by_field_and_of_a_batch_the_others_are_taken(client, settings, bad, problem):
    answer = client.post(ADDRESS, json=bad)
    assert answer.status_code == 422
    refused = client.post(ADDRESS, json=[report(), bad, report(source="b")])
    assert (refused.status_code, refused.json()["accepted"]) == (202, 2)
    (named,) = refused.json()["refused"]
    assert named["position"] == 1
    assert named["error"] == answer.json()["error"]
    assert re.match(problem, named["error"])
    client.post("/flush")
    assert kept(settings)["source"].to_list() == ["api", "b"]


@pytest.mark.parametrize("body", [b"", b"{", b'"\\ud800"', b"[" * 2000, b'{"prediction_id": NaN}', b"\xff"])
def test_a_body_that_is_no_report_is_refused(client, body):
    assert client.post(ADDRESS, content=body).status_code == 422
    assert client.post("/v1/feedback/nothing", json=report()).status_code == 404


def counted(client: TestClient) -> tuple[int, int]:
    client.post("/flush")
    status = client.get("/status").json()["feedback"]
    return status["waiting"], status["expired"]


def test_a_report_for_a_prediction_that_is_not_logged_waits_is_counted_and_expires(client, settings, monkeypatch):
    monkeypatch.setattr(waiting, "_SHARE", 0)  # count at each call
    assert counted(client) == (0, 0)
    missing = str(uuid.uuid4())
    client.post(ADDRESS, json=[report(), report(prediction_id=missing)])
    assert counted(client) == (2, 0)
    LogTable(settings, NAME).append(rows([event(id=ONE)]))
    assert counted(client) == (1, 0)
    at(settings, NOW + USECASE.label.feedback_wait)
    assert counted(client) == (1, 0)
    at(settings, NOW + USECASE.label.feedback_wait + timedelta(microseconds=1))
    assert counted(client) == (0, 1)
    assert "throughline_collector_feedback_expired 1" in client.get("/metrics").text


def test_a_confirmed_report_survives_a_kill_before_and_after_the_commit(settings, monkeypatch):
    killed = FeedbackIntake(settings, {NAME: USECASE})
    asyncio.run(killed.receive(NAME, json.dumps([report(), report(source="b")]).encode()))
    killed._journal._held.close()
    killed_again = FeedbackIntake(settings, {NAME: USECASE})

    def die(_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(killed_again._journal, "remove", die)
    with pytest.raises(SystemExit):
        killed_again.flush()
    killed_again._journal._held.close()
    assert kept(settings).height == 2
    after = FeedbackIntake(settings, {NAME: USECASE})
    after.flush()
    assert (kept(settings).height, after.duplicates, after.pending) == (2, 2, 0)
    after.close()
