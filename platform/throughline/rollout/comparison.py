"""What is compared for each metric of a rollout: from counts to the cells of a test. Pure, vectorised.

Owns: the null hypotheses of each metric, the guess of stable's means. Does not own: the test martingale
(`sequential.py`), the verdict (`judge.py`).

A metric is a family of null hypotheses "a mean of the candidate is within `tolerance` of stable's", a cell each:

    errors      share of failed requests: 1 cell
    latency     share of answers slower than max(ratio * t, floor), against stable's share slower than t: a cell per t
    scores      share of scores up to a bound, and above it, against stable's in the same window: 38 cells
    evaluation  the same, beyond the distance that both had on the held-out rows of the candidate's evaluation
    outcomes    mean Brier loss of labelled predictions: 1 cell
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from throughline.rollout.evidence import SCORE_BINS, Counts, Window
from throughline.rollout.sequential import Array, log_bets
from throughline.usecase.release import Judge

Reference = tuple[tuple[float, ...], tuple[float, ...]]  # score counts by bin, of stable and candidate; or empty ones

_WIDEST = 0.99  # an allowed difference of two means
_PRIOR_WEIGHT = 20.0  # values that the first guess of stable's mean counts for
_MEMORY = 2000.0  # values: older ones count for less in the guess of stable's mean
# First guesses of stable's mean: for shares of a histogram the one with the smallest stakes.
_PRIORS = {"errors": 0.01, "latency": 0.5, "scores": 0.5, "evaluation": 0.5, "outcomes": 0.25}


@dataclass(frozen=True)
class Cells:
    """Numbers of values and their sums by cell (last axis). `expected`: difference of the means that is no fault."""

    stable_n: Array
    stable_sum: Array
    n: Array
    total: Array
    expected: float = 0.0


def cells(metric: str, window: Window, judge: Judge, reference: Reference) -> Cells | None:
    """What is compared for one metric in a window; None when it has no histogram or no reference."""
    stable, candidate = window.stable, window.candidate
    if metric == "errors":
        return single(stable.requests, stable.errors, candidate.requests, candidate.errors)
    if metric == "outcomes":
        return single(stable.outcomes, stable.loss, candidate.outcomes, candidate.loss)
    if metric == "scores":
        return distribution(_scores(stable), _scores(candidate))
    if metric == "evaluation":
        if not all(map(sum, reference)):
            return None
        return distribution(_scores(stable), _scores(candidate), distance(*map(_array, reference)))
    if judge.latency is None or not stable.latency or not candidate.latency:
        return None
    bounds, tolerated = _array(window.latency_bounds), judge.latency
    found = slower(
        bounds, _array(stable.latency), _array(candidate.latency), tolerated.ratio, tolerated.floor_ms / 1000
    )
    return found if found.n.size else None


def swapped_outcomes(window: Window) -> Cells:
    """The losses with the sides exchanged: evidence that the candidate's is lower."""
    stable, candidate = window.stable, window.candidate
    return single(candidate.outcomes, candidate.loss, stable.outcomes, stable.loss)


def single(stable_n: Any, stable_sum: Any, n: Any, total: Any) -> Cells:
    """One mean of each."""
    n_s, x_s, n_c, x_c = (_array(each)[..., None] for each in (stable_n, stable_sum, n, total))
    return Cells(n_s, x_s, n_c, x_c)


def distribution(stable: Array, candidate: Array, expected: float = 0.0) -> Cells:
    """Score counts by bin (last axis) as cells: the shares up to each inner bound, then those above it."""
    n_s, x_s = _both_ways(stable)
    n, x = _both_ways(candidate)
    return Cells(n_s, x_s, n, x, expected)


def distance(stable: Array, candidate: Array) -> float:
    """Kolmogorov's, of two histograms: the largest difference of their distribution functions at the inner bounds."""
    (n_s, x_s), (n, x) = _both_ways(stable), _both_ways(candidate)
    return float((x / n - x_s / n_s).max())


def slower(bounds: Array, stable: Array, candidate: Array, ratio: float, floor: float) -> Cells:
    """Latency counts by bin (last axis) as cells: answers slower than each bound, given `ratio` times and `floor` (s).

    The candidate's bound is the first that is at least what it is given; cells beyond the last bound are left out.
    """
    given = np.maximum(bounds * ratio, floor)
    its = np.searchsorted(bounds, given - 1e-12)
    fits = its < len(bounds)
    above_s = _above(stable)[..., : len(bounds)][..., fits]
    above = _above(candidate)[..., : len(bounds)][..., its[fits]]
    n_s = np.broadcast_to(stable.sum(-1, keepdims=True), above_s.shape)
    n = np.broadcast_to(candidate.sum(-1, keepdims=True), above.shape)
    return Cells(n_s, above_s, n, above)


def wagered(metric: str, found: Cells, tolerance: float, stable_n: Array, stable_sum: Array) -> Array:
    """log E of a window by cell and excess. `stable_n`, `stable_sum`: of earlier windows (`remembered`)."""
    predicted = (stable_sum + _PRIORS[metric] * _PRIOR_WEIGHT) / (stable_n + _PRIOR_WEIGHT)
    allowed = min(found.expected + tolerance, _WIDEST)
    return log_bets(found.stable_n, found.stable_sum, found.n, found.total, predicted, allowed)


def remembered(found: Cells, stable_n: Array, stable_sum: Array) -> tuple[Array, Array]:
    """Stable's counts for the guess of its mean in the next window."""
    n, total = stable_n + found.stable_n, stable_sum + found.stable_sum
    kept = np.minimum(1.0, _MEMORY / np.maximum(n, 1.0))
    return n * kept, total * kept


def _both_ways(counts: Array) -> tuple[Array, Array]:
    """Of counts by bin: their number and the counts up to each inner bound, then above it, by cell."""
    up_to = counts.cumsum(-1)[..., :-1]
    number = counts.sum(-1, keepdims=True)
    sums = np.concatenate([up_to, number - up_to], axis=-1)
    return np.broadcast_to(number, sums.shape), sums


def _above(counts: Array) -> Array:
    """Of counts by bin: how many are above each bin's upper bound."""
    return counts.sum(-1, keepdims=True) - counts.cumsum(-1)


def _scores(counts: Counts) -> Array:
    return _array(counts.scores or [0.0] * SCORE_BINS)


def _array(values: Any) -> Array:
    return np.asarray(values, float)
