"""How scores respond to changed inputs: to a declared change of one feature, and to a source that is missing.

After Ribeiro et al. 2020 (CheckList): invariance and directional expectations, on real rows. Pure.
Owns: the changes and the shares of rows that break an expectation. Does not own: which (the declaration).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from throughline.models.metrics import log_loss
from throughline.records import BehaviourCheck
from throughline.usecase import Expectation

Score = Callable[[pl.DataFrame], np.ndarray]


def check(score: Score, rows: pl.DataFrame, name: str, expected: Expectation) -> BehaviourCheck:
    """The share of rows whose score moves by more than the tolerance where it must not, or the wrong way.

    Rows without a value are left as they are and not counted; the share is NaN when no row has one.
    """
    before = rows.filter(pl.col(expected.feature).is_not_null())
    if before.is_empty():
        return BehaviourCheck(name=name, rows=0, broken=float("nan"), mean_change=float("nan"))
    after = before.with_columns((pl.col(expected.feature) + expected.add).alias(expected.feature))
    change = score(after) - score(before)
    broken = {
        "same": np.abs(change) > expected.tolerance,
        "up": change < -expected.tolerance,
        "down": change > expected.tolerance,
    }[expected.score]
    return BehaviourCheck(name=name, rows=before.height, broken=float(broken.mean()), mean_change=float(change.mean()))


def without(score: Score, rows: pl.DataFrame, labels: np.ndarray, groups: Mapping[str, list[str]]) -> dict[str, float]:
    """By how much the log loss rises when all features of a group are missing: a source that does not deliver."""
    base = log_loss(score(rows), labels)
    return {
        name: log_loss(score(rows.with_columns(pl.lit(None, rows.schema[f]).alias(f) for f in features)), labels) - base
        for name, features in groups.items()
    }
