"""Steps are valid OpenLineage events with the same id however often they are sent; a dead receiver costs seconds."""

from __future__ import annotations

import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.lineage_receiver import Receiver, receiver, typed
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.lineage import openlineage
from throughline.lineage.openlineage import StepRun, Table, namespace_of, send
from throughline.services.ports import take_ports

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = "0b7c1c88-6f0e-4d43-9f5e-1f6f0a3f7a10"
STEP = StepRun(
    run_id=RUN,
    job="retrain",
    step="u__training__dataset",
    started=BEGAN,
    ended=BEGAN + timedelta(seconds=7),
    state="COMPLETE",
    inputs=[Table("u/features/ticks", "3"), Table("u/features/feature_store")],
    outputs=[Table("u/training/dataset", "5")],
)


@pytest.fixture
def here() -> Iterator[Receiver]:
    with receiver() as listening:
        yield listening


def settings_of(home: Path, url: str | None, **more: object) -> Settings:
    return load_settings(home=home, openlineage_url=url, **more)


def test_a_step_is_sent_with_its_run_its_job_and_its_tables(tmp_path: Path, here: Receiver) -> None:
    settings = settings_of(tmp_path, here.url)
    assert send(settings, [STEP]) is None
    start, end = here.events
    assert here.jobs() == [("retrain.u__training__dataset", state) for state in ("START", "COMPLETE")]
    assert here.paths == ["/api/v1/lineage"] * 2
    assert (start.eventTime, end.eventTime) == ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:12+00:00")
    assert start.run.runId == end.run.runId != RUN
    assert start.run.facets["parent"].run["runId"] == RUN
    assert start.job.namespace == "throughline"
    namespace = f"file://{tmp_path}/lakehouse"
    assert [(each.namespace, each.name) for each in end.inputs] == [
        (namespace, "u/features/ticks"), (namespace, "u/features/feature_store")
    ]  # fmt: skip
    assert end.inputs[0].facets["version"].datasetVersion == "3"
    assert "version" not in end.inputs[1].facets
    assert end.outputs[0].facets["version"].datasetVersion == "5"


def test_a_step_sent_twice_is_the_same_run_and_another_step_is_not(tmp_path: Path, here: Receiver) -> None:
    settings = settings_of(tmp_path, here.url)
    other = StepRun(RUN, "retrain", "other", BEGAN)
    send(settings, [STEP])
    send(settings, [STEP, other])
    ids = [event.run.runId for event in here.events]
    assert ids[0] == ids[2]
    assert ids[4] not in ids[:4]
    assert here.jobs()[4:] == [("retrain.other", "START")]  # it has not ended


@pytest.mark.parametrize("state", ["FAIL", "ABORT"])
def test_a_failure_carries_its_reason_shortened(tmp_path: Path, here: Receiver, state: str) -> None:
    failed = StepRun(RUN, "j", "s", BEGAN, BEGAN, state, error="x" * 5000)
    send(settings_of(tmp_path, here.url), [failed])
    end = here.events[-1]
    assert end.eventType.value == state
    assert ("errorMessage" in end.run.facets) == (state == "FAIL")
    if state == "FAIL":
        assert end.run.facets["errorMessage"].message == "x" * 300


def test_the_key_goes_to_the_receiver_and_nowhere_else(tmp_path: Path, here: Receiver, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_of(tmp_path, here.url, openlineage_key="very-secret")
    send(settings, [STEP])
    assert here.headers[0]["Authorization"] == "Bearer very-secret"
    here.status = 401
    assert "very-secret" not in str(send(settings, [STEP]))
    assert "very-secret" not in caplog.text + repr(settings) + str(settings.model_dump(mode="json"))


def test_nothing_about_the_checkout_is_sent(tmp_path: Path, here: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would look for the git remote of the working folder, whose address may hold a password."""
    remote = ["git", "remote", "add", "origin", "https://user:secret@git.example.org/x.git"]
    for command in (["git", "init", "--quiet"], remote):
        subprocess.run(command, cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    send(settings_of(tmp_path, here.url), [STEP])
    assert {name for event in here.events for name in event.job.facets} == set()
    assert {name for event in here.events for name in event.run.facets} == {"parent", "tags"}


@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_receiver_that_refuses_is_logged_in_one_line(tmp_path: Path, here: Receiver, status: int, caplog) -> None:
    here.status = status
    problem = send(settings_of(tmp_path, here.url), [STEP, STEP])
    assert problem.startswith(f"0 of 4 events accepted by {here.url} (")
    assert "\n" not in problem
    assert problem in caplog.text
    assert here.requests <= 2  # the other events are not tried


def test_a_receiver_that_is_not_there_costs_little_time(tmp_path: Path) -> None:
    port = take_ports(1)
    began = time.monotonic()
    problem = send(settings_of(tmp_path, f"http://127.0.0.1:{port}"), [STEP] * 20)
    assert problem.startswith("0 of 40 events accepted")
    assert time.monotonic() - began < 10


def test_a_receiver_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openlineage, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        began = time.monotonic()
        problem = send(settings_of(tmp_path, f"http://127.0.0.1:{deaf.getsockname()[1]}"), [STEP] * 20)
    assert problem.startswith("0 of 40 events accepted")
    assert time.monotonic() - began < 10


def test_a_slow_receiver_gets_the_events_that_fit_into_half_a_minute(tmp_path, here, monkeypatch) -> None:
    monkeypatch.setattr(openlineage, "_ALL_S", -1.0)
    assert send(settings_of(tmp_path, here.url), [STEP]).endswith("(Timeout)")
    assert here.events == []


def test_a_lakehouse_in_a_bucket_is_its_own_namespace(tmp_path: Path) -> None:
    assert namespace_of(load_settings(home=tmp_path, lakehouse_uri="s3://lake/x")) == "s3://lake/x"


@pytest.mark.parametrize("url", ["marquez:5000", "ftp://marquez", "http://user:secret@marquez:5000"])
def test_an_invalid_address_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(ThroughlineError, match="openlineage_url: give http") as refused:
        settings_of(tmp_path, url)
    assert "secret" not in str(refused.value)


def test_the_receiver_of_these_tests_takes_valid_events_only() -> None:
    (event,) = openlineage.events_of(StepRun(RUN, "j", "s", BEGAN), "n")
    from openlineage.client.serde import Serde

    good = Serde.to_dict(event)
    assert typed(good).job.name == "j.s"
    for change in ({"more": 1}, {"eventTime": "yesterday"}, {"run": {"runId": "7"}}, {"job": {"name": "x"}}):
        with pytest.raises((TypeError, ValueError)):
            typed({**good, **change})
