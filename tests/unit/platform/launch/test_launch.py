"""One failed launch is one error, which names the worker at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.launch import local
from throughline.launch.protocol import EXIT_LOST_PEER, LaunchSpec, explain, parse_event

SPEC = LaunchSpec("trainer", Path("spec.json"), 3, 60, Path("the.log"), Path())


def failure(exits, errors=(), last_lines=None, memory_kills=0):
    return explain(list(exits), list(errors), last_lines or {}, memory_kills, SPEC)


def test_a_worker_that_lost_its_peer_is_not_the_cause():
    found = failure([(0, EXIT_LOST_PEER), (2, 137), (1, 143)])
    assert (found.reason, found.worker) == ("lost_worker", 2)
    assert "worker 2 of 3 was killed (SIGKILL)" in str(found)


def test_the_first_worker_to_end_is_the_cause():
    found = failure([(1, 1), (0, 143), (2, 137)], [(1, "no rows: take more days.", "bad_data")])
    assert (found.reason, found.worker) == ("bad_data", 1)
    assert str(found) == "trainer: no rows: take more days (log: the.log)."


def test_lack_of_memory_is_named_when_the_kernel_counts_it():
    assert failure([(0, 137)], memory_kills=1).reason == "out_of_memory"
    assert failure([(0, 137)], memory_kills=0).reason == "lost_worker"
    assert failure([(0, 143)], memory_kills=1).reason == "lost_worker"  # ended by a signal, not by the kernel


def test_a_silent_end_is_reported_with_code_and_last_line():
    text = str(failure([(1, 3)], last_lines={0: "all is well", 1: "ImportError: no module"}))
    assert "worker 1 of 3 ended with exit code 3: ImportError: no module" in text


def test_the_error_of_a_launch_names_its_log_on_one_line():
    for exits in ([], [(0, 1)], [(0, 200)]):
        assert "the.log" in str(failure(exits))
        assert "\n" not in str(failure(exits))


@pytest.mark.parametrize("text", ["hello", "{", '{"a": 1}', "[1]", '{"event": 3}', ""])
def test_a_line_that_is_no_event_is_log(text):
    assert parse_event(text) is None


def test_an_event_is_a_json_object_with_the_key_event():
    assert parse_event('{"event": "epoch", "loss": 0.5}') == {"event": "epoch", "loss": 0.5}


@pytest.mark.parametrize("name", ["THROUGHLINE_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "API_KEY"])
def test_a_secret_in_the_environment_of_a_worker_is_refused(name):
    with pytest.raises(ThroughlineError, match="process list"):
        LaunchSpec("trainer", Path("spec.json"), 1, 60, Path("the.log"), Path(), {name: "secret"})


def test_a_worker_learns_where_object_storage_is_and_no_credentials(monkeypatch):
    allowed = {"AWS_PROFILE": "lake", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_REGION": "eu-central-1"}
    secrets = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE_SECRET"]
    for name, value in {**allowed, **dict.fromkeys(secrets, "secret")}.items():
        monkeypatch.setenv(name, value)
    given = local._environment(LaunchSpec("trainer", Path("spec.json"), 1, 60, Path("the.log"), Path()))
    assert allowed.items() <= given.items()
    assert "secret" not in given.values()


def test_no_worker_at_all_is_refused():
    with pytest.raises(ThroughlineError, match="at least 1"):
        LaunchSpec("trainer", Path("spec.json"), 0, 60, Path("the.log"), Path())
