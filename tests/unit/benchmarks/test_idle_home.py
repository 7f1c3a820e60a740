"""The cost of an idle home is counted per service, from the processes that are there at both ends."""

from __future__ import annotations

import os

import psutil
import pytest

from benchmarks.idle_home import per_minute, usage


def test_cpu_seconds_a_minute_are_those_between_the_two_counts() -> None:
    before = {"spark": (10.0, 300.0), "ended": (5.0, 10.0)}
    after = {"spark": (13.0, 310.4), "started": (2.0, 20.0)}
    assert per_minute(before, after, minutes=2) == {"spark": {"cpu_s_per_min": 1.5, "mb": 310}}


def test_the_processes_of_a_service_count_together_and_an_ended_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    own = psutil.Process()
    monkeypatch.setattr(psutil.Process, "environ", lambda self: {"SUPERVISOR_PROCESS_NAME": "x"})
    ended = psutil.Popen(["true"])
    ended.wait()
    one, two = usage([own]), usage([own, own, ended])
    assert list(one) == list(two) == ["x"]
    assert two["x"][1] == pytest.approx(2 * one["x"][1], rel=0.2)
    assert one["x"][0] <= two["x"][0] / 2 <= sum(os.times()[:4]) + 0.1
