"""The simulation of the judge: its runs are the judge's, its peer looks as often and is wrong more often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks import judge as simulation
from benchmarks.judge import BOUNDS, DEFAULT, OURS, PEER, SCENARIOS, Traffic, always, simulated
from tests.support.rollouts import START
from throughline.rollout.evidence import Counts, Window
from throughline.rollout.judge import Evidence, observed, verdict

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def test_a_run_of_the_simulation_ends_when_the_judge_rolls_back(monkeypatch):
    scenario = replace(BY_NAME["errors 10 %"], labelled=0.0, judge=DEFAULT)
    drawn = []

    def keep(*arguments):
        drawn.append(real(*arguments))
        return drawn[-1]

    real = simulation._drawn
    monkeypatch.setattr(simulation, "_drawn", keep)
    alarms = simulated(scenario, runs=5, looks=40, seed=7)
    shares = tuple(simulation._score_shares(Traffic()).tolist())
    for run in range(5):
        known, seen = Evidence(), 0.0
        for look in range(0, len(drawn), 2):
            stable, candidate = (
                Counts(**{name: tuple(v[run].tolist()) if v.ndim > 1 else float(v[run]) for name, v in one.items()})
                for one in drawn[look : look + 2]
            )
            one = Window(start=START, end=START, latency_bounds=tuple(BOUNDS), stable=stable, candidate=candidate)
            known = observed(known, one, DEFAULT, (shares, shares))
            seen += candidate.requests
            if verdict(known, DEFAULT, 20).conclusion == "roll_back":
                break
        assert seen == alarms.ours[run]


def test_faults_are_found_and_good_revisions_left_alone():
    assert np.isfinite(simulated(BY_NAME["errors 10 %"], runs=40, looks=60, seed=1).ours).all()
    assert np.isfinite(simulated(BY_NAME["three times slower"], runs=40, looks=30, seed=1).ours).all()
    assert not np.isfinite(simulated(BY_NAME["at its tolerances"], runs=60, looks=60, seed=1).ours).any()


def test_outages_of_both_revisions_deceive_the_peer_and_not_the_judge():
    alarms = simulated(BY_NAME["outages of both"], runs=40, looks=90, seed=1)
    assert not np.isfinite(alarms.ours).any()
    assert np.isfinite(alarms.peer).mean() > 0.5


def test_a_figure_is_a_rate_for_good_ones_and_a_median_for_bad_ones():
    good = replace(BY_NAME["equal"], candidate=always())
    assert simulation._figure(good, [np.inf, 10.0, np.inf, np.inf]) == 0.25
    assert simulation._figure(BY_NAME["errors 10 %"], [10.0, 30.0, np.inf]) == 30.0
    assert simulation._figure(BY_NAME["errors 10 %"], [10.0, np.inf, np.inf]) == "not found"
    assert {OURS, PEER} == {"throughline", "peeking"}
