"""Metrics of scores against labels. Pure.

Owns: definitions; what cannot be computed is NaN. Does not own: which rows (`evaluate.py`), bounds (`gate.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from throughline.records import Metrics, ReliabilityBin

ECE_BINS = 10
_NAN = float("nan")


def metrics_of(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """All metrics of probabilities [rows] against labels 0/1 [rows].

    All are NaN when there is no row or when a score is no probability or a label neither 0 nor 1.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be two lists of the same length")
    sound = len(scores) and np.all((scores >= 0) & (scores <= 1)) and np.all((labels == 0) | (labels == 1))
    if not sound:
        return Metrics(rows=len(scores), log_loss=_NAN, auc=_NAN, brier=_NAN, ece=_NAN)
    return Metrics(
        rows=len(scores),
        log_loss=log_loss(scores, labels),
        auc=auc(scores, labels),
        brier=float(np.mean((scores - labels) ** 2)),
        ece=expected_calibration_error(scores, labels),
    )


def losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Negative log likelihood in nats [rows]; scores are kept 2e-16 away from 0 and 1, as scikit-learn does."""
    least = np.finfo(np.float64).eps
    kept = np.clip(scores, least, 1 - least)
    return -(labels * np.log(kept) + (1 - labels) * np.log1p(-kept))


def log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `losses`."""
    return float(np.mean(losses(scores, labels)))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties half; NaN when one of the two is absent."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return _NAN
    ranks = pl.Series(scores).rank("average").to_numpy()
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def reliability(scores: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
    """`ECE_BINS` bins that hold equally many rows; equal scores share one."""
    edges = np.quantile(scores, np.linspace(0, 1, ECE_BINS + 1)[1:-1])
    places = np.searchsorted(edges, scores, side="left")
    groups = [places == place for place in np.unique(places)]
    return [
        ReliabilityBin(mean_score=float(scores[g].mean()), outcome_rate=float(labels[g].mean()), rows=int(g.sum()))
        for g in groups
    ]


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance of mean score and outcome rate over `reliability`'s bins, weighted by rows."""
    bins = reliability(scores, labels)
    return sum(abs(one.mean_score - one.outcome_rate) * one.rows for one in bins) / len(scores)
