"""The whole thread on all the data before the replay, and what is too long for every test run.

Those of the small thread (`tests/e2e/test_thread.py`) run here on the whole first quarter, in the order of this file.
"""

from __future__ import annotations

import json
import time
from datetime import date
from typing import Any

import psutil
import pytest

from tests.e2e import test_thread as small
from tests.support.thread import ThreadHome
from throughline.foundation.settings import DEFAULT_PORTS, Settings

pytestmark = [pytest.mark.drill(minutes=25), pytest.mark.e2e, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def data_from() -> date | None:
    return None


example, first_run, home, replayed_day, settings = (
    small.example,
    small.first_run,
    small.home,
    small.replayed_day,
    small.settings,
)

test_run_takes_raw_flights_to_a_live_endpoint = small.test_run_takes_raw_flights_to_a_live_endpoint


def test_a_second_run_recomputes_nothing(home: ThreadHome, first_run: dict[str, Any]) -> None:
    started = time.monotonic()
    done = home.cli("run", "--json")
    assert done.returncode == 0, done.stderr
    (usecase,) = json.loads(done.stdout)["usecases"]
    assert usecase["materialised"] == []
    assert usecase["model"] == first_run["model"]
    assert time.monotonic() - started < 120  # a hang, not a speed claim


test_the_three_protocols_give_the_same_answer = small.test_v1_v2_and_grpc_give_the_same_answer
test_a_prediction_is_in_delta_seconds_later = small.test_a_prediction_is_in_delta_seconds_later_with_the_features_used
test_the_load_test_loses_nothing = small.test_the_load_test_of_the_live_endpoint_ends_and_loses_nothing
test_a_training_is_submitted = small.test_a_training_is_submitted_with_a_few_values_and_not_done_twice


def test_the_same_training_submitted_again_is_not_done_again(home: ThreadHome, first_run: dict[str, Any]) -> None:
    first = json.loads(small.train_logistic(home, "--as-of", "2013-03-29").stdout)
    again = json.loads(small.train_logistic(home, "--as-of", "2013-03-29").stdout)
    assert again["model"] == first["model"]
    run = json.loads(home.cli("run", "--json").stdout)["usecases"][0]
    assert run["materialised"] == []
    assert run["model"] == first_run["model"]


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--trainer", "forest"], 1, "Trainer forest is unknown"),
        (["--trainer", "mlp", "--set", "layers=3"], 2, "Parameter layers is unknown"),
        (["--trainer", "mlp", "--set", "lr=-1"], 2, "Parameter learning_rate -1"),
        (["--as-of", "2012-06-01"], 1, "before the data"),
        (["--as-of", "2014-06-01"], 1, "is in the future"),
        (["--trainer", "logistic", "--as-of", "2013-01-01T12:00:00Z"], 1, "no row with a known label before"),
        (["--dataset", "0123456789"], 1, "Dataset 0123456789 is not known"),
        (["--trainer", "mlp", "--set", "lr=1e30", "--set", "epochs=1"], 1, "training loss became"),
    ],
)
def test_an_impossible_training_is_one_line_and_registers_nothing(
    home: ThreadHome, first_run: dict[str, Any], options: list[str], code: int, problem: str
) -> None:
    small.refused_training(home, options, code, problem)


def test_a_cancelled_training_leaves_no_worker(home: ThreadHome, settings: Settings, first_run: dict[str, Any]) -> None:
    def workers() -> list[psutil.Process]:
        commands = {p: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
        return [p for p, command in commands.items() if str(settings.home / "training") in command]

    submitted = home.cli("train", "flight_delay", "--trainer", "mlp", "--set", "epochs=5000", "--no-wait", "--json")
    job = json.loads(submitted.stdout)["job"]
    end = time.monotonic() + 300
    while "epoch:" not in home.run_log(job) and time.monotonic() < end:
        time.sleep(1)
    assert len(workers()) >= 2
    done = home.cli("jobs", "cancel", job[:8], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "CANCELED"
    assert workers() == []
    assert home.cli("jobs", "cancel", job[:8]).returncode == 1  # it has ended


test_killed_services_recover = small.test_killed_services_are_reported_and_the_next_run_recovers_and_recomputes_nothing
test_a_day_passes = small.test_after_a_replayed_day_its_predictions_have_their_outcomes
test_the_drift_sensor_gives_its_reason = small.test_the_drift_sensor_gives_its_reason_for_not_retraining
test_served_is_offline = small.test_served_features_equal_those_of_the_offline_store_at_the_same_instant


def test_down_leaves_nothing_behind_and_up_starts_all_again(
    home: ThreadHome, settings: Settings, first_run: dict[str, Any]
) -> None:
    try:
        assert home.cli("down").returncode == 0
        ports = {settings.port(name) for name in DEFAULT_PORTS}
        listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
        assert not ports & listening
    finally:
        assert home.cli("up").returncode == 0
