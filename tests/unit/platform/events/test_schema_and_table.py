"""The inference log: what goes over the wire comes back, every event is in the table once, gaps are counted."""

from __future__ import annotations

import json
from datetime import timedelta

import polars as pl
import pytest
from fastapi.testclient import TestClient

from tests.support.events import NOW, binary, event, rows, structured
from throughline.events.cloudevent import BATCH, STRUCTURED
from throughline.events.collector import create_app
from throughline.events.log_intake import LogIntake
from throughline.events.schema import JSON_COLUMNS, LOG_SCHEMA, InferenceEvent, to_line
from throughline.events.table import LogTable
from throughline.foundation.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path)


def logged(settings: Settings) -> pl.DataFrame:
    return pl.read_delta(str(settings.table_path("flight_delay", "monitoring", "inference_log")))


def test_the_table_has_a_column_per_field_of_the_event_and_the_day(settings):
    LogTable(settings, "flight_delay").append(rows([event()]))
    fields = set(InferenceEvent.model_fields) - {"subject"}
    (row,) = logged(settings).to_dicts()
    assert set(row) == set(LOG_SCHEMA) == fields | {"day"}
    assert dict(logged(settings).schema) == LOG_SCHEMA
    assert {name for name, value in event().model_dump().items() if isinstance(value, dict)} == set(JSON_COLUMNS)


def test_the_table_holds_each_id_once_though_it_is_written_again(settings):
    first, second = event(1), event(2)
    table = LogTable(settings, "flight_delay")
    assert table.append(rows([first, second, first])) == 2
    assert table.append(rows([second])) == 0
    after_restart = LogTable(settings, "flight_delay")
    third = event(3, time=NOW + timedelta(days=1))
    assert after_restart.append(rows([first, third])) == 1
    assert sorted(logged(settings)["sequence"]) == [1, 2, 3]
    assert set(logged(settings)["day"].to_list()) == {NOW.date(), NOW.date() + timedelta(days=1)}


def test_a_row_has_the_features_of_the_prediction(settings):
    LogTable(settings, "flight_delay").append(rows([event()]))
    (row,) = logged(settings).to_dicts()
    assert json.loads(row["request"]) == {"origin": "JFK", "tailnum": None}
    assert json.loads(row["features"]) == {"hour": 9.0, "wind": None}
    assert json.loads(row["feature_times"]) == {"weather": "2013-04-01T04:00:00Z", "aircraft": None}
    assert row["time"] == NOW
    assert row["wall_time"].year == 2026
    assert row["flags"] == ["unknown_entity:aircraft"]
    assert (row["model_version"], row["score"], row["decision"]) == (3, 0.25, "late")


def test_gaps_are_counted_as_lost_per_source_also_after_a_restart(settings):
    LogTable(settings, "flight_delay").append(rows([event(n) for n in (1, 2, 5)] + [event(1, "urn:test:2")]))
    sources = LogTable(settings, "flight_delay").sources
    assert {name: count.lost for name, count in sources.items()} == {"urn:test:1": 2, "urn:test:2": 0}


def test_a_confirmed_event_survives_a_kill_before_and_after_the_commit(settings, monkeypatch):
    """The two moments a kill can fall in: nothing is committed, or all is and the journal still holds it."""
    confirmed = [event(n) for n in (1, 2, 3)]
    killed = LogIntake(settings, ["flight_delay"])
    killed._journal.append([to_line(each) for each in confirmed], sync=True)
    killed._journal._held.close()

    killed_again = LogIntake(settings, ["flight_delay"])
    monkeypatch.setattr(killed_again._journal, "remove", _die)
    with pytest.raises(SystemExit):
        killed_again.write()
    killed_again._journal._held.close()
    assert logged(settings).height == 3

    after = LogIntake(settings, ["flight_delay"])
    assert after.pending == 3
    after.write()
    assert logged(settings).height == 3
    status = after.status()
    assert (status["written"], status["pending"], status["duplicates"], status["lost"]) == (3, 0, 3, 0)


def _die(_):
    raise SystemExit


def test_the_collector_confirms_flushes_and_counts(settings):
    headers, body = binary(structured())
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.post("/", content=body, headers=headers).status_code == 202
        assert client.post("/", content=body, headers=headers).status_code == 202
        refused = client.post("/", content=body, headers=headers | {"ce-type": "other"})
        assert refused.status_code == 422
        assert "ce-type" in refused.json()["error"]
        unknown = client.post("/", content=body, headers=headers | {"ce-subject": "no_such_case"})
        assert (unknown.status_code, "no_such_case" in unknown.json()["error"]) == (422, True)
        assert client.post("/flush").json() == {
            "version": {"flight_delay": 0}, "failed": {}, "feedback": {"version": {"flight_delay": None}, "failed": {}},
        }  # fmt: skip
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


def test_of_a_batch_the_good_events_are_taken_and_the_others_named(settings):
    bad = structured(2, model_version="three")
    batch = [structured(1), bad, structured(3), structured(4, subject="no_such_case"), 7]
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        answer = client.post("/", content=json.dumps(batch), headers={"content-type": f"{BATCH}; charset=utf-8"})
        assert (answer.status_code, answer.json()["accepted"]) == (202, 2)
        refused = [(each["position"], each["id"], each["error"].partition(":")[0]) for each in answer.json()["refused"]]
        assert refused == [(1, bad["id"], "model_version"), (3, batch[3]["id"], "subject"), (4, None, "event")]
        answer = client.post("/", content=json.dumps([bad]), headers={"content-type": BATCH})
        assert (answer.status_code, answer.json()["accepted"]) == (422, 0)
        for body in ("{}", "[", '"' + "\\ud800" + '"', "[" * 2000):
            assert client.post("/", content=body, headers={"content-type": BATCH}).status_code == 422
        assert client.post("/", content="[]", headers={"content-type": BATCH}).status_code == 202
        single = client.post("/", content=json.dumps(structured(5)), headers={"content-type": STRUCTURED})
        assert single.status_code == 202
        client.post("/flush")
    assert sorted(logged(settings)["sequence"]) == [1, 3, 5]


def test_beyond_loopback_the_collector_demands_the_token(tmp_path):
    settings = Settings(home=tmp_path, bind="0.0.0.0", token="s3cret")
    headers, body = binary(structured())
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        assert client.get("/health").status_code == 200
        assert client.get("/status").status_code == 401
        assert client.post("/", content=body, headers=headers).status_code == 401
        wrong = {"Authorization": "Bearer s3cre"}
        assert client.post("/", content=body, headers=headers | wrong).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/", content=body, headers=headers | right).status_code == 202
