"""Under load: twenty switches between two versions lose no request, a killed collector loses no event."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import psutil
import pytest

from tests.e2e.conftest import started
from tests.support.load import COLLECTOR, environment, home_under_load, loadtests, only_slow
from throughline.foundation.settings import PROJECT_ROOT, Settings

pytestmark = [pytest.mark.drill(minutes=2), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Settings]:
    with home_under_load(tmp_path_factory.mktemp("home")) as settings:
        yield settings


SWITCH_TWICE = """
from tests.support.fake_store_server import USECASE, put_revision
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import load_settings

settings = load_settings()
with client_of(settings, "model_http") as server:
    for version in (2, 1):
        put_revision(settings, version=version, bias=float(version))
        server.post(f"/v2/repository/models/{USECASE}/load").raise_for_status()
"""


def test_twenty_switches_between_two_versions_under_load_lose_no_request(served: Settings, tmp_path: Path) -> None:
    script = tmp_path / "switch_twice.py"
    script.write_text(SWITCH_TWICE)
    switch = f"{sys.executable} -c \"import runpy; [runpy.run_path('{script}') for _ in range(2)]\""
    _, stdout, stderr = loadtests(
        served, "--scenario", "rollout", "--seconds", "40", "--rate", "40", "--switch", switch, "--json"
    )
    assert stdout, stderr
    (rollout,) = json.loads(stdout.splitlines()[-1])["scenarios"]
    assert rollout["facts"]["switches"] * 4 == 20
    assert rollout["failed_share"] == 0, rollout
    assert rollout["logged_share"] == 1, rollout
    assert only_slow(rollout["missed"]), rollout
    log = pl.read_delta(str(served.table_path("flight_delay", "monitoring", "inference_log")))
    assert set(log["model_version"]) == {1, 2}


def test_a_collector_that_is_killed_under_load_loses_no_event(served: Settings) -> None:
    """The last test of this home: its collector has ended."""
    (collector,) = [p for p in psutil.Process().children() if "throughline.events.collector" in p.cmdline()]
    command = [sys.executable, "-m", "loadtests", "--scenario", "steady", "--seconds", "8", "--rate", "25", "--json"]
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment(served), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as load:
        assert load.stderr is not None
        while "steady" not in load.stderr.readline():  # it has begun
            assert load.poll() is None
        collector.kill()
        collector.wait()
        with started(served, "collector-again", COLLECTOR, "collector", "/health"):
            stdout, stderr = load.communicate(timeout=120)
    assert stdout, stderr
    (steady,) = json.loads(stdout.splitlines()[-1])["scenarios"]
    assert steady["failed_share"] == 0, steady
    assert steady["logged_share"] == 1, steady
    assert only_slow(steady["missed"]), steady
