"""Calibration of the serving model: mean score against outcome rate, over a window on the data clock.

Owns: the verdict. A verdict without data is `cannot_say`, never `ok`.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

import polars as pl

from throughline.foundation.references import ModelReference
from throughline.records import CalibrationRecord
from throughline.usecase import Calibration


def judge_calibration(
    outcomes: pl.DataFrame, model: ModelReference | None, policy: Calibration, as_of: datetime, log_complete: bool
) -> CalibrationRecord:
    """Judge the stable predictions that `model` made in the window before `as_of` (UTC).

    `outcomes` as `monitoring.outcomes` writes them. Only that version's own predictions count: those of its
    predecessor show the drift that it was trained to mend.
    """
    start = as_of - policy.window

    def verdict(
        verdict: Literal["ok", "drift", "cannot_say"], reason: str, n: int = 0, means: tuple[float, float] | None = None
    ) -> CalibrationRecord:
        score, rate = means or (None, None)
        return CalibrationRecord(
            model=model, window_from=start, window_until=as_of, outcomes=n, mean_score=score, outcome_rate=rate,
            verdict=verdict, reason=reason,
        )  # fmt: skip

    if model is None:
        return verdict("cannot_say", "no model serves")
    if not log_complete:
        return verdict("cannot_say", "the inference log is incomplete: events were lost")
    judged = outcomes.filter(
        pl.col("label").is_not_null(),
        pl.col("time").is_between(start, as_of, closed="right"),
        pl.col("model_name") == model.name,
        pl.col("model_version") == model.version,
        pl.col("role") == "stable",
    )
    if judged.height < policy.minimum_outcomes:
        reason = f"{judged.height} outcomes in the window, {policy.minimum_outcomes} are needed"
        return verdict("cannot_say", reason, judged.height)
    score, rate = (float(judged[name].to_numpy().mean()) for name in ("score", "label"))
    gap = score - rate
    if not math.isfinite(gap):
        return verdict("cannot_say", "a score in the window is not a number", judged.height)
    if abs(gap) > policy.gap:
        return verdict("drift", f"gap {gap:+.4f} is beyond {policy.gap}", judged.height, (score, rate))
    return verdict("ok", f"gap {gap:+.4f} is within {policy.gap}", judged.height, (score, rate))
