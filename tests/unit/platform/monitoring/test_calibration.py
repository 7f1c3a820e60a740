"""The verdict counts the serving model's own labelled predictions in the window; without data it is `cannot_say`."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from throughline.foundation.references import ModelReference
from throughline.monitoring.calibration import judge_calibration
from throughline.records import CalibrationRecord
from throughline.usecase import Calibration

NOW = datetime(2013, 6, 1, 4, tzinfo=UTC)
MODEL = ModelReference("m", 3)
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
POLICY = Calibration(window="14d", gap=0.05, minimum_outcomes=10)
SCHEMA = {
    "time": pl.Datetime("us", "UTC"),
    "model_name": pl.String,
    "model_version": pl.Int64,
    "role": pl.String,
    "score": pl.Float64,
    "label": pl.Int8,
}


def predictions(n: int, score: float = 0.5, late: int = 0, **changes: Any) -> pl.DataFrame:
    """`n` judged predictions of the serving version, `late` of them with label 1."""
    row = {"time": NOW - DAY, "model_name": "m", "model_version": 3, "role": "stable", "score": score, **changes}
    return pl.DataFrame([{"label": int(i < late), **row} for i in range(n)], schema=SCHEMA)


def judge(*parts: pl.DataFrame, model: ModelReference | None = MODEL, log_complete: bool = True) -> CalibrationRecord:
    outcomes = pl.concat(parts) if parts else pl.DataFrame(schema=SCHEMA)
    return judge_calibration(outcomes, model, POLICY, NOW, log_complete)


def test_the_window_excludes_its_start_and_includes_its_end() -> None:
    inside = [NOW, NOW - 14 * DAY + TICK]
    outside = [NOW - 14 * DAY, NOW + TICK, NOW - 15 * DAY]
    record = judge(*(predictions(10, time=at) for at in inside), *(predictions(10, time=at) for at in outside))
    assert record.outcomes == 20
    assert (record.window_from, record.window_until) == (NOW - 14 * DAY, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_version": 2},
        {"model_version": 30},
        {"model_name": "other"},
        {"role": "canary"},
        {"role": "shadow"},
        {"label": None},
    ],
)
def test_predictions_of_others_or_without_a_label_are_not_counted(changes: dict[str, Any]) -> None:
    record = judge(predictions(100, late=50), predictions(1000, score=0.9, **changes))
    assert (record.outcomes, record.verdict, record.mean_score) == (100, "ok", 0.5)


def test_below_the_minimum_it_cannot_say() -> None:
    assert judge(predictions(9, score=0.9)).verdict == "cannot_say"
    assert judge(predictions(9, score=0.9)).reason == "9 outcomes in the window, 10 are needed"
    assert judge(predictions(10, score=0.9)).verdict == "drift"
    assert judge().verdict == "cannot_say"


def test_with_an_incomplete_log_it_cannot_say() -> None:
    record = judge(predictions(1000, score=0.9), log_complete=False)
    assert record.verdict == "cannot_say"
    assert "incomplete" in record.reason
    assert record.gap is None


def test_without_a_model_it_cannot_say() -> None:
    record = judge(predictions(1000, score=0.9), model=None)
    assert (record.verdict, record.reason, record.model) == ("cannot_say", "no model serves", None)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_not_taken_for_calibrated(score: float) -> None:
    record = judge(predictions(100, late=50), predictions(1, score=score))
    assert record.verdict == "cannot_say"
    assert "not a number" in record.reason


@pytest.mark.parametrize(
    ("score", "late", "verdict"),
    [(0.5, 500, "ok"), (0.549, 500, "ok"), (0.451, 500, "ok"), (0.551, 500, "drift"), (0.449, 500, "drift")],
)
def test_a_gap_on_either_side_is_drift_and_its_sign_says_which(score: float, late: int, verdict: str) -> None:
    record = judge(predictions(1000, score=score, late=late))
    assert record.verdict == verdict
    assert record.gap == pytest.approx(score - 0.5)
    assert (record.gap > 0) == (score > 0.5) or score == 0.5
    assert f"{record.gap:+.4f}" in record.reason
