"""Confidence intervals by drawing days with replacement. Pure.

Rows of one day are dependent: drawing rows would give intervals that are too narrow, so days are drawn (Davison and
Hinkley 1997, section 3.8: resampling whole clusters).
Owns: the draws, metrics under them, intervals. Does not own: the metrics' definitions (`metrics.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from throughline.models.metrics import losses
from throughline.records import Interval

DRAWS = 400
LEVEL = 0.95
LEAST_FINITE = 0.99  # share of the draws
MINIMUM_DAYS = 5  # fewer are no sample of other days


@dataclass(frozen=True)
class Draws:
    """How often each day was drawn: `counts` float64 [draws, days], `day` int [rows] the place of a row's day."""

    counts: np.ndarray
    day: np.ndarray

    @classmethod
    def of(cls, days: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Draws:
        """`days`: any label per row [rows]. The same days and seed give the same draws."""
        names, place = np.unique(days, return_inverse=True)
        number = len(names)
        counts = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / max(1, number)), size=draws)
        return cls(counts.astype(np.float64), place)

    @property
    def enough(self) -> bool:
        """Whether these rows lie on enough days to be a sample of others."""
        return len(np.unique(self.day)) >= MINIMUM_DAYS

    def among(self, mask: np.ndarray) -> Draws:
        """The same draws for some of the rows: differences of two slices or models stay paired."""
        return Draws(self.counts, self.day[mask])

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of `values` [rows] under each draw [draws]; NaN where no row was drawn."""
        days = self.counts.shape[1]
        sums = np.bincount(self.day, values, minlength=days)
        rows = np.bincount(self.day, minlength=days).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.counts @ sums) / (self.counts @ rows)

    def metrics(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """log_loss, brier and auc [draws] of scores against labels [rows].

        Not the calibration error: a draw's is larger than the rows' own, whatever the model, and so is its interval.
        """
        scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
        return {
            "log_loss": self.mean(losses(scores, labels)),
            "brier": self.mean((scores - labels) ** 2),
            "auc": self._auc(scores, labels),
        }

    def _auc(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Chance that a positive is above a negative, ties half, with each row as often as its day was drawn."""
        order = np.argsort(scores, kind="stable")
        first = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
        day, positive = self.day[order], labels[order] == 1
        found = np.empty(len(self.counts))
        for number, counts in enumerate(self.counts):
            weights = counts[day]
            positives = np.add.reduceat(np.where(positive, weights, 0.0), first)
            negatives = np.add.reduceat(np.where(positive, 0.0, weights), first)
            pairs = positives.sum() * negatives.sum()
            below = np.cumsum(negatives) - negatives
            found[number] = (positives * (below + negatives / 2)).sum() / pairs if pairs else np.nan
        return found


def interval(drawn: np.ndarray) -> Interval | None:
    """The middle `LEVEL` of the draws (percentile interval); None when too few are finite.

    A slice that lies on a few days is missing in some draws.
    """
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < max(1, LEAST_FINITE * len(drawn)):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))
