"""The inference log: what goes over the wire comes back, every event is in the table once, gaps are counted."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from fastapi.testclient import TestClient

from throughline.events.collector import Collector, create_app
from throughline.events.schema import JSON_COLUMNS, LOG_SCHEMA, BadEvent, InferenceEvent, from_binary, to_binary
from throughline.events.table import LogTable
from throughline.foundation.settings import Settings

NOW = datetime(2013, 4, 1, 4, tzinfo=UTC)


def event(sequence: int = 1, source: str = "urn:test:1", **changes: object) -> InferenceEvent:
    fields = {
        "id": uuid.uuid4(),
        "source": source,
        "subject": "flight_delay",
        "time": NOW,
        "sequence": sequence,
        "wall_time": datetime(2026, 1, 1, tzinfo=UTC),
        "model_name": "flight_delay",
        "model_version": 3,
        "revision": "v3-abc",
        "role": "stable",
        "row_key": "2013-04-01T13:00:00Z|B6|1018|JFK",
        "request": {"origin": "JFK", "tailnum": None},
        "features": {"hour": 9.0, "wind": None},
        "feature_times": {"weather": NOW, "aircraft": None},
        "flags": ["unknown_entity:aircraft"],
        "score": 0.25,
        "decision": "late",
        "latency_ms": 1.5,
    }
    return InferenceEvent(**(fields | changes))


def wire(sent: InferenceEvent) -> tuple[dict[str, str], bytes]:
    headers, body = to_binary(sent)
    return {name.lower(): value for name, value in headers.items()}, body


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


def logged(settings: Settings) -> pl.DataFrame:
    return pl.read_delta(str(settings.table_path("flight_delay", "monitoring", "inference_log")))


def test_an_event_is_read_as_it_was_sent():
    sent = event()
    headers, body = wire(sent)
    assert headers["ce-id"] == str(sent.id)
    assert headers["ce-subject"] == "flight_delay"
    assert headers["ce-time"].startswith("2013-04-01T04:00:00")
    assert from_binary(headers, body) == sent


def test_the_table_has_a_column_per_field_of_the_event_and_the_day(settings):
    LogTable(settings, "flight_delay").append([event()])
    fields = set(InferenceEvent.model_fields) - {"subject"}
    (row,) = logged(settings).to_dicts()
    assert set(row) == set(LOG_SCHEMA) == fields | {"day"}
    assert dict(logged(settings).schema) == LOG_SCHEMA
    assert {name for name, value in event().model_dump().items() if isinstance(value, dict)} == set(JSON_COLUMNS)


@pytest.mark.parametrize(
    ("headers", "body", "problem"),
    [
        ({"ce-specversion": None}, None, "ce-specversion"),
        ({"ce-type": "org.kubeflow.serving.inference.request"}, None, "ce-type"),
        ({"ce-id": "not-a-uuid"}, None, "id"),
        ({"ce-sequence": "0"}, None, "sequence"),
        ({"ce-subject": "../../etc"}, None, "subject"),
        ({"ce-time": "2013-04-01T04:00:00"}, None, "time"),
        ({}, b"{broken", "event"),
        ({}, b"[]", "data"),
        ({}, b"{}", "wall_time"),
    ],
)
def test_an_event_that_cannot_be_stored_is_refused_by_name(headers, body, problem):
    good_headers, good_body = wire(event())
    changed = {name: value for name, value in (good_headers | headers).items() if value is not None}
    with pytest.raises(BadEvent, match=problem):
        from_binary(changed, good_body if body is None else body)


def test_the_table_holds_each_id_once_though_it_is_written_again(settings):
    first, second = event(1), event(2)
    table = LogTable(settings, "flight_delay")
    assert table.append([first, second, first]) == 2
    assert table.append([second]) == 0
    after_restart = LogTable(settings, "flight_delay")
    third = event(3, time=NOW + timedelta(days=1))
    assert after_restart.append([first, third]) == 1
    assert sorted(logged(settings)["sequence"]) == [1, 2, 3]
    assert set(logged(settings)["day"].to_list()) == {NOW.date(), NOW.date() + timedelta(days=1)}


def test_a_row_has_the_features_of_the_prediction(settings):
    LogTable(settings, "flight_delay").append([event()])
    (row,) = logged(settings).to_dicts()
    assert json.loads(row["request"]) == {"origin": "JFK", "tailnum": None}
    assert json.loads(row["features"]) == {"hour": 9.0, "wind": None}
    assert json.loads(row["feature_times"]) == {"weather": "2013-04-01T04:00:00Z", "aircraft": None}
    assert row["time"] == NOW
    assert row["wall_time"].year == 2026
    assert row["flags"] == ["unknown_entity:aircraft"]
    assert (row["model_version"], row["score"], row["decision"]) == (3, 0.25, "late")


def test_gaps_are_counted_as_lost_per_source_also_after_a_restart(settings):
    LogTable(settings, "flight_delay").append([event(n) for n in (1, 2, 5)] + [event(1, "urn:test:2")])
    sources = LogTable(settings, "flight_delay").sources
    assert {name: count.lost for name, count in sources.items()} == {"urn:test:1": 2, "urn:test:2": 0}


def test_a_confirmed_event_survives_a_kill_before_and_after_the_commit(settings, monkeypatch):
    """The two moments a kill can fall in: nothing is committed, or all is and the journal still holds it."""
    confirmed = [event(n) for n in (1, 2, 3)]
    killed = Collector(settings)
    killed._journal.append([each.model_dump_json().encode() for each in confirmed], sync=True)
    killed._journal._held.close()

    killed_again = Collector(settings)
    monkeypatch.setattr(killed_again._journal, "remove", _die)
    with pytest.raises(SystemExit):
        killed_again.write()
    killed_again._journal._held.close()
    assert logged(settings).height == 3

    after = Collector(settings)
    assert after.pending == 3
    after.write()
    assert logged(settings).height == 3
    status = after.status()
    assert (status["written"], status["pending"], status["duplicates"], status["lost"]) == (3, 0, 3, 0)


def _die(_):
    raise SystemExit


def test_the_collector_confirms_flushes_and_counts(settings):
    sent = event(1)
    headers, body = wire(sent)
    with TestClient(create_app(settings)) as client:
        assert client.post("/", content=body, headers=headers).status_code == 202
        assert client.post("/", content=body, headers=headers).status_code == 202
        refused = client.post("/", content=body, headers=headers | {"ce-type": "other"})
        assert refused.status_code == 422
        assert "ce-type" in refused.json()["error"]
        unknown = client.post("/", content=body, headers=headers | {"ce-subject": "no_such_case"})
        assert (unknown.status_code, "no_such_case" in unknown.json()["error"]) == (422, True)
        assert client.post("/flush").json() == {"version": {"flight_delay": 0}}
        status = client.get("/status").json()
        assert {k: status[k] for k in ("received", "written", "duplicates", "rejected", "lost", "pending")} == {
            "received": 2,
            "written": 1,
            "duplicates": 1,
            "rejected": 2,
            "lost": 0,
            "pending": 0,
        }
        assert "throughline_collector_events_written_total 1" in client.get("/metrics").text
        assert client.get("/nowhere").json() == {"error": "Not Found"}


def test_beyond_loopback_the_collector_demands_the_token(tmp_path):
    settings = Settings(home=tmp_path, bind="0.0.0.0", token="s3cret")
    headers, body = wire(event())
    with TestClient(create_app(settings)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/status").status_code == 401
        assert client.post("/", content=body, headers=headers).status_code == 401
        wrong = {"Authorization": "Bearer s3cre"}
        assert client.post("/", content=body, headers=headers | wrong).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/", content=body, headers=headers | right).status_code == 202
