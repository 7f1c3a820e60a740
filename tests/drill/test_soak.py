"""Ten minutes of load on the real model server: nothing fails, everything is logged, memory stays flat."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.serving_home import make_home
from loadtests.scenarios import SCENARIOS
from tests.e2e.conftest import started
from tests.support.load import COLLECTOR, loadtests
from throughline.foundation.settings import Settings
from throughline.services.ports import take_ports
from throughline.usecase import get_usecase

pytestmark = [pytest.mark.drill(minutes=11), pytest.mark.timeout(1200)]


def test_the_servers_memory_stays_flat_over_ten_minutes_of_load(tmp_path) -> None:
    settings = Settings(home=tmp_path, port_base=take_ports())
    make_home(settings, get_usecase("flight_delay"))
    with (
        started(settings, "collector", COLLECTOR, "collector", "/health"),
        started(settings, "model-server", [sys.executable, "-m", "serving"], "model_http", "/v2/health/ready"),
    ):
        _, stdout, stderr = loadtests(settings, "--scenario", "soak", "--json")
    assert stdout, stderr
    sys.stderr.write(stderr)  # states the slope, with `make drill ARGS="-k soak -s"`
    (soak,) = json.loads(stdout.splitlines()[-1])["scenarios"]
    assert soak["requests"] > 30_000
    assert soak["failed_share"] == 0
    assert soak["logged_share"] == 1
    slope, bound = soak["memory_mb_per_min"], SCENARIOS["soak"].levels.memory_mb_per_min
    assert bound is not None
    assert slope <= bound, f"resident memory grows by {slope:.2f} MB per minute"
