"""`python -m benchmarks.judge`: how often the judge of rollouts is wrong, and how soon it finds a fault, by simulation.

Each run is a rollout with continuous looking: per look the requests are dealt to both revisions at random, and the
judge looks at what came. Its peer holds the same hypotheses, with the same split of the same level, and tests the
counts so far at each look as if they were a fixed sample (z-tests with Bonferroni's correction).
The cells and the martingale are the judge's own code; only the runs are many at once.
Owns: the scenarios, the peer. Does not own: the judge.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks.report import OURS, progress, ratio, result, run
from throughline.rollout.comparison import Cells, distribution, remembered, single, slower, wagered
from throughline.rollout.evidence import SCORE_BINS
from throughline.rollout.sequential import EXCESSES, Array, carried, evidence
from throughline.usecase.release import Judge

ABOUT = (
    "How often a good revision is rolled back, and after how many of its requests a bad one is found, with continuous "
    "looking: by simulation, beside a fixed-sample test that looks as often. The ratio is of false alarms."
)
PEER = "peeking"
BATCH = 250  # runs at once
BOUNDS = np.array([1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300]) / 1000
DEFAULT = Judge()
STRICT = Judge.model_validate(
    {name: {"tolerance": 0.0} for name in ("errors", "scores", "evaluation", "outcomes")}
    | {"latency": {"tolerance": 0.0, "ratio": 1.0, "floor_ms": 0}}
)


@dataclass(frozen=True)
class Traffic:
    """What a revision does: shares of failed requests and of labelled ones, seconds, scores, mean loss."""

    errors: float = 0.002
    seconds: float = 0.006
    slow: float = 0.0  # share of answers that take ten times as long
    shift: float = 0.0
    shifted: float = 1.0  # share of the scores that are
    loss: float = 0.15


@dataclass(frozen=True)
class Scenario:
    """`stable`, `candidate`: look -> traffic; `share`: look -> the candidate's share of the requests of a look."""

    name: str
    stable: Callable[[int], Traffic]
    candidate: Callable[[int], Traffic]
    good: bool
    share: Callable[[int], float] = lambda _: 0.1
    judge: Judge = DEFAULT
    requests: int = 100
    labelled: float = 0.0


@dataclass
class Alarms:
    """By run, the candidate's requests when it was first rolled back; infinite: never."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


def always(**options: float) -> Callable[[int], Traffic]:
    traffic = Traffic(**options)
    return lambda _: traffic


def _outages(look: int) -> Traffic:
    return Traffic(errors=0.3, seconds=0.08) if look >= 60 and look % 20 < 10 else Traffic()


SCENARIOS = (
    Scenario("equal", always(), always(), good=True, labelled=0.2),
    Scenario("equal, no tolerance", always(), always(), good=True, judge=STRICT, labelled=0.2),
    Scenario(
        "at its tolerances",
        always(errors=0.01),
        always(errors=0.02, slow=0.05, shift=0.45, shifted=0.15, loss=0.16),
        good=True,
        labelled=0.2,
    ),
    Scenario("outages of both", _outages, _outages, good=True, share=lambda look: 0.05 if look < 60 else 0.5),
    Scenario("errors 10 %", always(), always(errors=0.1), good=False),
    Scenario("errors 3 %", always(), always(errors=0.03), good=False),
    Scenario("NaN: each request fails", always(), always(errors=1.0), good=False),
    Scenario("three times slower", always(), always(seconds=0.018), good=False),
    Scenario("one in five ten times slower", always(), always(slow=0.2), good=False),
    Scenario("scores shifted by .2", always(), always(shift=0.2), good=False),
    Scenario("one score in three shifted by .4", always(), always(shift=0.4, shifted=1 / 3), good=False),
    Scenario("Brier loss .15 to .25", always(), always(loss=0.25), good=False, labelled=1.0),
    Scenario("errors 10 % from look 100 on", always(), lambda n: Traffic(errors=0.1 * (n >= 100)), good=False),
)


def _score_shares(traffic: Traffic) -> Array:
    """Shares of scores by bin: Beta(2, 5), a part of it shifted and cut off at 1."""
    grid = (np.arange(4000) + 0.5) / 4000
    density = grid * (1 - grid) ** 4
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    plain, _ = np.histogram(grid, edges, weights=density)
    shifted, _ = np.histogram(np.minimum(grid + traffic.shift, 1.0), edges, weights=density)
    shares = (1 - traffic.shifted) * plain + traffic.shifted * shifted
    return shares / shares.sum()


def _latency_shares(traffic: Traffic) -> Array:
    """Shares of latencies by bin: log-normal, a part of it ten times slower."""
    normal = NormalDist(0, 0.4)

    def up_to(seconds: float) -> float:
        return normal.cdf(float(np.log(seconds / traffic.seconds)))

    below = np.array([(1 - traffic.slow) * up_to(b) + traffic.slow * up_to(b / 10) for b in BOUNDS])
    return np.diff(np.concatenate([[0.0], below, [1.0]]))


def _drawn(random: np.random.Generator, requests: Array, traffic: Traffic, labelled: float) -> dict[str, Array]:
    failed = random.binomial(requests.astype(int), traffic.errors)
    answered = requests.astype(int) - failed
    known = random.binomial(answered, labelled)
    return {
        "requests": requests,
        "errors": failed.astype(float),
        "latency": random.multinomial(answered, _latency_shares(traffic)).astype(float),
        "scores": random.multinomial(answered, _score_shares(traffic)).astype(float),
        "outcomes": known.astype(float),
        # losses are fractions; as many whole ones are the same mean with the largest variance that it allows
        "loss": random.binomial(known, traffic.loss).astype(float),
    }


def _cells(metric: str, stable: dict[str, Array], candidate: dict[str, Array], judge: Judge) -> Cells:
    if metric == "errors":
        return single(stable["requests"], stable["errors"], candidate["requests"], candidate["errors"])
    if metric == "outcomes":
        return single(stable["outcomes"], stable["loss"], candidate["outcomes"], candidate["loss"])
    if metric in ("scores", "evaluation"):  # both versions had the same scores in the evaluation
        return distribution(stable["scores"], candidate["scores"])
    assert judge.latency is not None
    return slower(BOUNDS, stable["latency"], candidate["latency"], judge.latency.ratio, judge.latency.floor_ms / 1000)


class Peeking:
    """The fixed-sample test at each look, on the sums so far."""

    def __init__(self, level: float) -> None:
        self._level = level
        self._sums: dict[str, list[Array]] = {}

    def rejects(self, metric: str, found: Cells, tolerance: float) -> Array:
        """By run, whether a cell is significantly beyond its tolerance."""
        new = [found.stable_n, found.stable_sum, found.n, found.total]
        before = self._sums.get(metric, [np.zeros(1)] * 4)
        self._sums[metric] = [a + b for a, b in zip(before, new, strict=True)]
        n_s, x_s, n, x = self._sums[metric]
        p, p_s = x / np.maximum(n, 1), x_s / np.maximum(n_s, 1)
        if tolerance == 0:  # pooled under "equal"
            both = (x + x_s) / np.maximum(n + n_s, 1)
            variance = both * (1 - both) * (1 / np.maximum(n, 1) + 1 / np.maximum(n_s, 1))
        else:
            variance = p * (1 - p) / np.maximum(n, 1) + p_s * (1 - p_s) / np.maximum(n_s, 1)
        critical = NormalDist().inv_cdf(1 - self._level / found.n.shape[-1])
        # the usual rule of thumb for the normal approximation
        enough = (n >= 30) & (x >= 5)
        return ((p - p_s - tolerance > critical * np.sqrt(np.maximum(variance, 1e-12))) & enough).any(-1)


def simulated(scenario: Scenario, runs: int, looks: int, seed: int) -> Alarms:
    """When each of `runs` rollouts was rolled back by the judge, and by its peer."""
    random = np.random.default_rng(seed)
    judge = scenario.judge
    metrics = {name: one for name, one in judge.tolerances.items() if name != "outcomes" or scenario.labelled}
    level = judge.false_alarm / len(judge.tolerances)
    log_sums: dict[str, Array] = {}
    recent: dict[str, tuple[Array, Array]] = {}
    peer = Peeking(level)
    seen = np.zeros(runs)
    ours, theirs = np.full(runs, np.inf), np.full(runs, np.inf)
    for look in range(1, looks + 1):
        dealt = random.binomial(scenario.requests, scenario.share(look), runs).astype(float)
        seen += dealt
        stable = _drawn(random, scenario.requests - dealt, scenario.stable(look), scenario.labelled)
        candidate = _drawn(random, dealt, scenario.candidate(look), scenario.labelled)
        for metric, tolerance in metrics.items():
            found = _cells(metric, stable, candidate, judge)
            if metric not in log_sums:
                log_sums[metric] = np.full((*found.n.shape, len(EXCESSES)), -np.inf)
                recent[metric] = np.zeros(found.n.shape), np.zeros(found.n.shape)
            bets = wagered(metric, found, tolerance, *recent[metric])
            log_sums[metric] = carried(log_sums[metric], look, bets)
            recent[metric] = remembered(found, *recent[metric])
            fails = evidence(log_sums[metric], look) >= -np.log(level)
            ours = np.where(fails & np.isinf(ours), seen, ours)
            theirs = np.where(peer.rejects(metric, found, tolerance) & np.isinf(theirs), seen, theirs)
        if np.isfinite(ours).all() and np.isfinite(theirs).all():
            break
    return Alarms(ours.tolist(), theirs.tolist())


def _figure(scenario: Scenario, when: list[float]) -> float | str:
    """Of a good revision the share of runs that rolled it back, of a bad one the median of its requests by then."""
    if scenario.good:
        return round(float(np.isfinite(when).mean()), 4)
    middle = float(np.median(when))
    return middle if np.isfinite(middle) else "not found"


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    runs, looks = (BATCH, 150) if chosen.quick else (8 * BATCH, 400)
    figures: dict[str, dict[str, float | str]] = {OURS: {}, PEER: {}}
    false_alarms: dict[str, list[float]] = {OURS: [], PEER: []}
    for number, scenario in enumerate(SCENARIOS):
        alarms = Alarms()
        for batch in range(runs // BATCH):
            some = simulated(scenario, BATCH, looks, seed=1000 * number + batch)
            alarms.ours += some.ours
            alarms.peer += some.peer
        name = f"false alarms: {scenario.name}" if scenario.good else f"requests until: {scenario.name}"
        for who, when in ((OURS, alarms.ours), (PEER, alarms.peer)):
            figures[who][name] = _figure(scenario, when)
            if scenario.good:
                # a rate of none in all runs counts as one in all runs
                false_alarms[who].append(max(float(figures[who][name]), 1 / runs))
        progress(f"{name}: {figures[OURS][name]}, {PEER} {figures[PEER][name]}")
    setup = {
        "runs": runs, "looks": looks, "requests_per_look": 100, "share": 0.1,
        "false_alarm": DEFAULT.false_alarm, "tolerances": DEFAULT.tolerances,
    }  # fmt: skip
    ratios = {PEER: ratio(false_alarms[OURS], false_alarms[PEER], higher_is_better=False)}
    return result("judge", chosen.quick, setup, figures, ratios, "false alarms of good revisions, by scenario")


if __name__ == "__main__":
    sys.exit(run(argparse.ArgumentParser(prog="benchmarks.judge", description=ABOUT), measure))
