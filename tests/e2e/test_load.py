"""Load tests of a real model server: nothing fails and everything is logged, beside switches and bad clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.load import home_under_load, loadtests, only_slow
from throughline.foundation.settings import PROJECT_ROOT, Settings

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Settings]:
    with home_under_load(tmp_path_factory.mktemp("home")) as settings:
        yield settings


def test_no_request_fails_and_every_answer_is_logged_once_in_each_scenario(served: Settings) -> None:
    chosen = ["steady", "rollout", "bad-clients", "batch"]
    _, stdout, stderr = loadtests(
        served, *(word for name in chosen for word in ("--scenario", name)), "--seconds", "2", "--rate", "20", "--json"
    )
    assert stdout, stderr
    result: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    by_name = {scenario["name"]: scenario for scenario in result["scenarios"]}
    assert list(by_name) == chosen
    for name, scenario in by_name.items():
        assert scenario["requests"] > 15, name
        assert scenario["failed_share"] == 0, scenario
        assert scenario["logged_share"] == 1, scenario
        assert only_slow(scenario["missed"]), scenario
    assert by_name["rollout"]["facts"]["switches"] == 5
    assert [one["rows"] for one in by_name["batch"]["latency"]] == [1, 10, 100]
    assert "<svg" in Path(result["report"]).read_text()
    log = pl.read_delta(str(served.table_path("flight_delay", "monitoring", "inference_log")))
    assert set(log["traffic"]) == {"load_test"}


def test_a_switch_that_fails_is_named_and_the_exit_code_is_one(served: Settings) -> None:
    code, stdout, _ = loadtests(
        served, "--scenario", "rollout", "--seconds", "1", "--switch", "echo no such version; exit 3"
    )
    assert code == 1
    assert "exit code 3: no such version" in stdout
    assert stdout.startswith("FAIL")


def test_a_target_elsewhere_and_a_server_that_is_down_are_one_line(served: Settings) -> None:
    code, _, stderr = loadtests(served, "--url", "http://192.0.2.1:80")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "loopback" in stderr
    code, _, stderr = loadtests(served, "--url", f"http://127.0.0.1:{served.port('spark')}")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "make run" in stderr


STALLED = """
from gevent import monkey
monkey.patch_all()
import gevent, json, time
from gevent.server import StreamServer
from loadtests.arrivals import Phase
from loadtests.callers import load
from loadtests.target import Target
from throughline.foundation.settings import Settings
from throughline.usecase import get_usecase

BODY = json.dumps({"predictions": [{"prediction_id": "a", "score": 0.5}]}).encode()
stall = time.monotonic() + 1.0

def answer(socket, _):
    while socket.recv(65536):
        if stall < time.monotonic() < stall + 1.0:
            gevent.sleep(stall + 1.0 - time.monotonic())
        socket.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(BODY), BODY))

server = StreamServer(("127.0.0.1", 0), answer)
server.start()
target = Target(Settings(), get_usecase("flight_delay"), f"http://127.0.0.1:{server.server_port}", [{"a": 1}])
samples = load(target, [Phase(3, 100)], (1,), clients=4)
print(json.dumps([[one.failure, one.latency_ms] for one in samples]))
"""


def test_a_server_that_stalls_is_charged_with_every_request_due_meanwhile(tmp_path) -> None:
    """Four closed callers would have sent four requests in the second of the stall; a hundred were due."""
    done = subprocess.run(
        [sys.executable, "-c", STALLED], cwd=PROJECT_ROOT, env={"THROUGHLINE_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    samples = json.loads(done.stdout.splitlines()[-1])
    assert len(samples) > 200
    assert not [failure for failure, _ in samples if failure]
    assert sum(latency > 300 for _, latency in samples) > 40
