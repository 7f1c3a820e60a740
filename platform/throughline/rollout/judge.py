"""The judge of a rollout: from windows of evidence to a verdict with its reasons. Pure.

Owns: how evidence is carried from look to look, the verdict. Does not own: what is compared (`comparison.py`), the test
martingale (`sequential.py`), what follows from a verdict (`strategy.py`).

`false_alarm` is split evenly over the declared metrics, and within a metric its cells are mixed: a metric fails when
its evidence ever reaches (number of metrics) / false_alarm. So a revision within all tolerances ever fails, over all
metrics and looks together, with probability `false_alarm` at most. This needs requests that are dealt to the revisions
at random and counted once each.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field

from throughline.records.base import Record
from throughline.rollout.comparison import Cells, Reference, cells, remembered, swapped_outcomes, wagered
from throughline.rollout.evidence import Window
from throughline.rollout.sequential import EXCESSES, Array, carried, evidence
from throughline.usecase.release import Judge

Conclusion = Literal["advance", "hold", "roll_back", "cannot_say"]

DOUBT = 10.0  # evidence above this holds a step: at most one in ten within tolerance ever gets there
BETTER = "better"  # the tally of "the candidate's loss is not below stable's"; no metric: it rolls nothing back
_WHEN_KNOWN = frozenset({"evaluation", "outcomes"})  # metrics without which a step may end
_WORDING = {
    "errors": "{candidate:.2%} of the candidate's requests failed, {stable:.2%} of stable's",
    "latency": "{candidate:.1%} of the candidate's answers took longer than it is given, {stable:.1%} of stable's",
    "scores": "the candidate's scores are {gap:.3f} away from stable's",
    "evaluation": "the candidate's scores are {gap:.3f} further away from stable's than in its evaluation",
    "outcomes": "the candidate's mean Brier loss is {candidate:.4f}, stable's {stable:.4f}",
}


class Tally(Record):
    """What is carried from look to look about one metric; by cell, where a tuple."""

    windows: int = 0
    sums: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # of stable and candidate, all windows
    values: tuple[float, float] = (0.0, 0.0)  # numbers of what was summed
    recent: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # number and sum of stable, see `remembered`
    log_sums: tuple[tuple[float, ...], ...] = ()  # by cell and excess, see `carried`
    now: float = 0.0  # log of the evidence
    peak: float = 0.0
    at_odds: tuple[float, float] = (0.0, 0.0)  # means expected by stable's and of the candidate, where most at odds


class Evidence(Record):
    """Everything the judge carries. Requests are the candidate's."""

    tallies: dict[str, Tally] = Field(default_factory=dict)
    requests: float = 0
    step_requests: float = 0
    replayed: float = Field(0, description="Requests of windows in which logged ones were replayed.")
    fault: str | None = Field(None, description="Of the newest window: why nothing can be concluded from it.")

    def next_step(self) -> Evidence:
        return self.model_copy(update={"step_requests": 0.0})


class Finding(Record):
    """About one metric. `evidence` is against "within tolerance", 1 at the start; at `limit` the metric fails."""

    metric: str
    verdict: Literal["pass", "fail", "cannot_say"]
    stable: float
    candidate: float
    tolerance: float
    evidence: float
    limit: float
    values: float = Field(description="Of the candidate: requests, answers, scores or labels.")
    reason: str


class Verdict(Record):
    """The judge's answer at one look."""

    conclusion: Conclusion
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    better: bool = Field(False, description="Whether the candidate's mean loss is shown to be below stable's.")

    def __str__(self) -> str:
        return f"{self.conclusion.replace('_', ' ')}: {'; '.join(self.reasons)}"


def observed(known: Evidence, window: Window, judge: Judge, reference: Reference = ((), ())) -> Evidence:
    """The evidence with one more window. `reference`: score counts of both on the rows of the evaluation.

    A window with a number that is NaN, negative or in conflict adds nothing but its fault.
    """
    if fault := window.fault():
        return known.model_copy(update={"fault": fault})
    tallies = dict(known.tallies)
    for metric, tolerance in judge.tolerances.items():
        found = cells(metric, window, judge, reference)
        if found is not None:
            tallies[metric] = _tallied(tallies.get(metric, Tally()), metric, found, tolerance)
    if "outcomes" in judge.tolerances:
        tallies[BETTER] = _tallied(tallies.get(BETTER, Tally()), "outcomes", swapped_outcomes(window), 0.0)
    requests = window.candidate.requests
    return Evidence(
        tallies=tallies,
        requests=known.requests + requests,
        step_requests=known.step_requests + requests,
        replayed=known.replayed + (requests if window.replayed else 0),
    )


def verdict(known: Evidence, judge: Judge, samples: int) -> Verdict:
    """Whether the step may end. `samples`: requests of the candidate that a step needs."""
    findings = tuple(_finding(known, metric, judge, samples) for metric in judge.tolerances)
    failed = tuple(finding.reason for finding in findings if finding.verdict == "fail")
    if failed:
        return Verdict(conclusion="roll_back", reasons=failed, findings=findings)
    unknown = [one.reason for one in findings if one.verdict == "cannot_say" and one.metric not in _WHEN_KNOWN]
    if known.fault:
        unknown.insert(0, f"the newest window cannot be judged: {known.fault}")
    if known.step_requests < samples:
        unknown.insert(0, f"{known.step_requests:.0f} of {samples} requests of this step were seen")
    if unknown:
        return Verdict(conclusion="cannot_say", reasons=tuple(unknown), findings=findings)
    doubts = tuple(finding.reason for finding in findings if finding.evidence > DOUBT)
    if doubts:
        return Verdict(conclusion="hold", reasons=doubts, findings=findings)
    better = known.tallies.get(BETTER, Tally()).peak >= -math.log(judge.false_alarm)
    within = ", ".join(finding.metric for finding in findings if finding.verdict == "pass")
    return Verdict(conclusion="advance", reasons=(f"within tolerance: {within}",), findings=findings, better=better)


def _tallied(tally: Tally, metric: str, found: Cells, tolerance: float) -> Tally:
    shape = found.n.shape
    if not found.n.any():
        return tally
    sums = _kept(tally.sums, (2, *shape)) + np.stack([found.stable_sum, found.total])
    values = tally.values[0] + float(found.stable_n[0]), tally.values[1] + float(found.n[0])
    recent = _kept(tally.recent, (2, *shape))
    log_sums = np.array(tally.log_sums) if tally.log_sums else np.full((*shape, len(EXCESSES)), -np.inf)
    if found.stable_n.any():
        windows = tally.windows + 1
        log_sums = carried(log_sums, windows, wagered(metric, found, tolerance, *recent))
    else:
        windows = tally.windows
    now = float(evidence(log_sums, windows))
    means = sums / np.maximum(np.array(values), 1.0)[:, None]
    means[0] += found.expected
    cell = int(np.argmax(means[1] - means[0]))
    return Tally(
        windows=windows,
        sums=_rows(sums),
        values=values,
        recent=_rows(np.stack(remembered(found, *recent))),
        log_sums=_rows(log_sums),
        now=now,
        peak=max(now, tally.peak),
        at_odds=(float(means[0, cell]), float(means[1, cell])),
    )


def _finding(known: Evidence, metric: str, judge: Judge, samples: int) -> Finding:
    tally, tolerance = known.tallies.get(metric, Tally()), judge.tolerances[metric]
    limit = len(judge.tolerances) / judge.false_alarm
    stable, candidate = tally.at_odds
    found: Literal["pass", "fail", "cannot_say"] = "pass"
    reason = _WORDING[metric].format(stable=stable, candidate=candidate, gap=candidate - stable)
    reason = f"{metric}: {reason} (tolerated {tolerance:g}; evidence {_exp(tally.peak):.3g} of {limit:g})"
    if tally.peak >= math.log(limit):
        found = "fail"
    elif not tally.windows:
        found, reason = "cannot_say", f"{metric}: there is nothing to compare yet"
    elif tally.values[1] < samples / 2:
        found, reason = "cannot_say", f"{metric}: {tally.values[1]:.0f} values are too few"
    return Finding(
        metric=metric, verdict=found, stable=stable, candidate=candidate, tolerance=tolerance,
        evidence=_exp(tally.now), limit=limit, values=tally.values[1], reason=reason,
    )  # fmt: skip


def _kept(rows: tuple[tuple[float, ...], ...], shape: tuple[int, ...]) -> Array:
    return np.array(rows) if rows[0] else np.zeros(shape)


def _rows(rows: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows.tolist())


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))
