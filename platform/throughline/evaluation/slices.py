"""The metrics on slices of the held-out rows. Pure.

Owns: cutting rows into slices, what a slice is compared with, disparity. Does not own: which columns (the
declaration), bounds (`gate.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from throughline.evaluation.bootstrap import Draws, interval
from throughline.models.metrics import losses, metrics_of
from throughline.records import SliceMetrics

MISSING = "missing"
LOCAL = ("month", "weekday", "hour")  # of the prediction, in the zone of the use case


@dataclass(frozen=True)
class Slice:
    """The rows whose `column` has `value`; `mask` bool [rows]."""

    column: str
    value: str
    mask: np.ndarray


def slices_of(rows: pl.DataFrame, columns: list[str], minimum_rows: int) -> Iterator[Slice]:
    """A slice per value of each column that has at least `minimum_rows` rows; null is the value `missing`."""
    for column in columns:
        words = rows[column].cast(pl.String).fill_null(MISSING).to_numpy()
        values, counts = np.unique(words, return_counts=True)
        for value in values[counts >= minimum_rows]:
            yield Slice(column, str(value), words == value)


def judge_slice(
    one: Slice,
    scores: np.ndarray,
    labels: np.ndarray,
    constant: float,
    champion: np.ndarray | None,
    threshold: float,
    draws: Draws,
) -> SliceMetrics:
    """Candidate against constant and champion on the slice's rows [rows of all]; intervals are paired, by day.

    `champion` is NaN on rows that it is not compared on.
    """
    own, outcomes = scores[one.mask], labels[one.mask]
    over, lost = None, None
    if champion is not None:
        both = one.mask & ~np.isnan(champion)
        difference = losses(scores[both], labels[both]) - losses(champion[both], labels[both])
        lost = float(difference.mean()) if len(difference) else float("nan")
        among = draws.among(both)
        over = interval(among.mean(difference)) if among.enough else None
    positives = outcomes == 1
    gained = losses(np.full(len(own), constant), outcomes) - losses(own, outcomes)
    return SliceMetrics(
        column=one.column,
        value=one.value,
        metrics=metrics_of(own, outcomes),
        base_rate=float(outcomes.mean()),
        mean_score=float(own.mean()),
        log_loss_under_constant=float(gained.mean()),
        log_loss_over_champion=lost,
        over_champion_interval=over,
        caught=float((own[positives] >= threshold).mean()) if positives.any() else float("nan"),
    )


def disparity(judged: list[SliceMetrics], column: str) -> dict[str, float]:
    """Largest difference between the values of a protected column; NaN where there are not two to compare.

    calibration  of mean score minus outcome rate
    opportunity  of the share of positives that get the positive decision (Hardt et al. 2016, equal opportunity)
    """
    among = [one for one in judged if one.column == column]
    return {
        "calibration": _spread([one.mean_score - one.base_rate for one in among]),
        "opportunity": _spread([one.caught for one in among]),
    }


def _spread(values: list[float]) -> float:
    return float(np.max(values) - np.min(values)) if len(values) > 1 else float("nan")


def local_columns(rows: pl.DataFrame, timezone: str) -> dict[str, pl.Series]:
    """Columns for slices beside the dataset's own: local month, weekday and hour of the prediction."""
    local = rows["prediction_time"].dt.convert_time_zone(timezone)
    return {name: local.dt.strftime(form) for name, form in zip(LOCAL, ("%Y-%m", "%a", "%H"), strict=True)}
