"""Candidates of known faults, judged on made rows by the rules of the built-in declaration: verdict and reasons."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import get_args

import numpy as np
import polars as pl
import pytest

from tests.support.judged import a_model, decided
from throughline.evaluation.evaluate import Rows, evaluate
from throughline.evaluation.gate import RULES
from throughline.foundation.references import TableReference
from throughline.records import DatasetRecord, GateDecision, ModelRecord
from throughline.usecase import Bound, Evaluation, Expectation, GateRule, UseCase, get_usecase
from throughline.usecase.evaluation import SimpleRuleOf, SlicesOf

HOLDOUT = datetime(2013, 3, 18, 4, tzinfo=UTC)
NOW = HOLDOUT + timedelta(days=14)
ROWS, DAYS = 24_000, 44
GATE = {
    "auc": Bound(at_least=0.70, below=0.80),
    "ece": Bound(at_most=0.05),
    "log_loss_under_constant": Bound(at_least=0.02),
    "log_loss_under_simple_rule": Bound(at_least=0.005),
    "log_loss_over_champion": Bound(at_most=0.002),
    "slice_log_loss_over_champion": Bound(at_most=0.005),
    "slice_log_loss_under_constant": Bound(at_least=-0.01),
    "disparity_calibration": Bound(at_most=0.08),
    "broken_behaviour": Bound(at_most=0.05),
    "generalisation_gap": Bound(at_most=0.05),
}
DECLARED = Evaluation(
    holdout="14d",
    simple_rule=SimpleRuleOf(feature="queue"),
    slices=SlicesOf(columns=["origin", "weekday"], minimum_rows=300, protected=["origin"]),
    behaviour={"longer_queue": Expectation(feature="queue", add=0.5, score="up", tolerance=0.01)},
)


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay").model_copy(update={"evaluation": DECLARED})


@pytest.fixture(scope="module")
def rows() -> Rows:
    """44 days: what happens depends on the queue and the wind; `chance` is a perfect model's score."""
    draw = np.random.default_rng(5)
    day = np.sort(draw.integers(0, DAYS, ROWS))
    queue, wind = draw.normal(size=ROWS), draw.normal(size=ROWS)
    chance = 1 / (1 + np.exp(1.3 - 0.8 * queue - 0.8 * wind - 0.3 * draw.normal(size=DAYS)[day]))
    minute = draw.integers(0, 24 * 60, ROWS)
    times = [HOLDOUT + timedelta(days=int(d) - (DAYS - 14), minutes=int(m)) for d, m in zip(day, minute, strict=True)]
    frame = pl.DataFrame(
        {
            "row_key": [f"{number:06d}" for number in range(ROWS)],
            "prediction_time": times,
            "label": (draw.random(ROWS) < chance).astype(np.int64),
            "queue": queue,
            "wind": wind,
            "origin": draw.choice(["EWR", "JFK", "LGA"], ROWS),
            "noise": draw.normal(size=ROWS),
        }
    )
    held = pl.col("prediction_time") >= HOLDOUT
    before = frame.filter(~held)
    return Rows(frame.filter(held), before, float(before["label"].mean()))


class Made:
    """A model that is a formula over the rows."""

    sha256, size_bytes, numeric = "d" * 64, 1000, ("queue", "wind", "noise")

    def __init__(self, logit: Callable[[pl.DataFrame], np.ndarray]) -> None:
        self._logit = logit

    def score(self, rows: pl.DataFrame) -> np.ndarray:
        return 1 / (1 + np.exp(-self._logit(rows)))

    def outside_domain(self, rows: pl.DataFrame) -> list[list[str]]:
        return [[] for _ in range(rows.height)]


def number(rows: pl.DataFrame, name: str) -> np.ndarray:
    return rows[name].cast(pl.Float64).fill_null(0.0).to_numpy()


def honest(rows: pl.DataFrame) -> np.ndarray:
    return -1.3 + 0.8 * number(rows, "queue") + 0.8 * number(rows, "wind")


def leaking(rows: pl.DataFrame) -> np.ndarray:
    return honest(rows) + 2.5 * (number(rows, "label") - 0.25)


def shifted(rows: pl.DataFrame) -> np.ndarray:
    return honest(rows) + 0.6


def flat_at_one_origin(rows: pl.DataFrame) -> np.ndarray:
    """As good as the others but at LGA, where the wind plays no part."""
    return honest(rows) - 0.8 * number(rows, "wind") * (rows["origin"] == "LGA").to_numpy()


def unfair(rows: pl.DataFrame) -> np.ndarray:
    return honest(rows) + 0.45 * (rows["origin"] == "LGA").to_numpy() - 0.3 * (rows["origin"] == "JFK").to_numpy()


def backwards(rows: pl.DataFrame) -> np.ndarray:
    """Beyond some length a longer queue lowers the score."""
    queue = number(rows, "queue")
    return -1.3 + 0.8 * np.where(queue > 0.8, 1.6 - queue, queue) + 0.8 * number(rows, "wind")


def record(version: int) -> ModelRecord:
    return a_model(version, sha256=Made.sha256, trained_until=HOLDOUT - timedelta(hours=1))


DATASET = DatasetRecord(
    usecase="u", table=TableReference("u/training/dataset", 0), path="", fingerprint="f", as_of=NOW,
    rows=ROWS, numeric=["queue", "wind", "noise"], categorical=["origin"], inputs=[], holdout_from=HOLDOUT,
    views={"queues": ["queue"], "weather": ["wind"], "other": ["noise"]},
)  # fmt: skip


def judge(usecase: UseCase, rows: Rows, candidate: Callable, champion: Callable | None = honest) -> GateDecision:
    rival = None if champion is None else (Made(champion), record(1))
    evaluation = evaluate(usecase, Made(candidate), record(2), rows, DATASET, NOW, rival)
    return decided(evaluation, record(2), GATE, NOW)


def failed(decision: GateDecision) -> dict[str, str]:
    return {rule.rule: rule.where for rule in decision.rules if rule.verdict != "pass"}


def test_one_that_is_equal_to_the_champion_is_released_and_the_reason_says_by_how_little_they_differ(usecase, rows):
    decision = judge(usecase, rows, honest)
    assert decision.decision == "release"
    (rule,) = [rule for rule in decision.rules if rule.rule == "log_loss_over_champion"]
    assert rule.value == 0.0


def test_one_that_has_seen_the_answers_is_refused_for_being_too_good(usecase, rows):
    decision = judge(usecase, rows, leaking)
    assert decision.decision == "reject"
    assert "auc" in failed(decision)
    (rule,) = [rule for rule in decision.rules if rule.rule == "auc"]
    assert rule.value > 0.80
    assert "below 0.8" in str(rule)


def test_one_whose_scores_are_too_high_is_refused_for_its_calibration(usecase, rows):
    decision = judge(usecase, rows, shifted, champion=None)
    assert decision.decision == "reject"
    assert "ece" in failed(decision)
    assert "auc" not in failed(decision)  # it orders as well as ever


def test_one_that_is_worse_on_one_big_slice_only_is_refused_and_the_slice_is_named(usecase, rows):
    generous = {**GATE, "log_loss_over_champion": Bound(at_most=0.05)}
    evaluation = evaluate(usecase, Made(flat_at_one_origin), record(2), rows, DATASET, NOW, (Made(honest), record(1)))
    decision = decided(evaluation, record(2), generous, NOW)
    assert failed(decision) == {"slice_log_loss_over_champion": "origin=LGA"}
    assert "origin=LGA" in decision.failures


def test_one_that_is_not_as_honest_for_all_is_refused_for_disparity(usecase, rows):
    assert failed(judge(usecase, rows, unfair, champion=None))["disparity_calibration"] == "origin"
    assert "disparity_calibration" not in failed(judge(usecase, rows, honest, champion=None))


def test_one_that_answers_the_wrong_way_is_refused_and_the_check_is_named(usecase, rows):
    assert failed(judge(usecase, rows, backwards, champion=None))["broken_behaviour"] == "longer_queue"


def test_one_no_better_than_reading_the_queue_is_refused(usecase, rows):
    decision = judge(usecase, rows, lambda frame: -1.2 + 0.7 * number(frame, "queue"), champion=None)
    assert "log_loss_under_simple_rule" in failed(decision)


def test_a_source_that_does_not_deliver_costs_what_the_evaluation_says(usecase, rows):
    evaluation = evaluate(usecase, Made(honest), record(2), rows, DATASET, NOW)
    assert evaluation.missing["weather"] > 0.02
    assert evaluation.missing["other"] == pytest.approx(0.0)
    assert evaluation.days == 14
    interval = evaluation.intervals["candidate"]["log_loss"]
    assert interval.low < evaluation.candidate.log_loss < interval.high


def test_with_too_few_days_no_slice_is_compared_and_the_gate_rejects(usecase, rows):
    few = Rows(rows.holdout.filter(pl.col("prediction_time") < HOLDOUT + timedelta(days=2)), rows.before, 0.25)
    evaluation = evaluate(usecase, Made(honest), record(2), few, DATASET, NOW, (Made(honest), record(1)))
    decision = decided(evaluation, record(2), GATE, NOW)
    verdicts = {rule.rule: rule.verdict for rule in decision.rules}
    assert verdicts["slice_log_loss_over_champion"] == "cannot_say"
    assert decision.decision == "reject"


@pytest.mark.parametrize("rule", ["slice_log_loss_under_constant", "disparity_calibration", "broken_behaviour"])
def test_a_rule_without_its_declared_check_cannot_say(usecase, rows, rule):
    bare = usecase.model_copy(update={"evaluation": Evaluation(holdout="14d")})
    evaluation = evaluate(bare, Made(honest), record(2), rows, DATASET, NOW)
    (verdict,) = [one for one in decided(evaluation, record(2), {rule: GATE[rule]}, NOW).rules if one.rule == rule]
    assert verdict.verdict == "cannot_say"


def test_the_gate_has_every_rule_that_may_be_declared():
    assert set(get_args(GateRule)) == set(RULES)
