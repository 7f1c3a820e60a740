"""The gate is closed unless every rule passes for this very model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.judged import a_metric as metrics
from tests.support.judged import a_model, an_evaluation, decided
from throughline.evaluation.gate import NO_CHAMPION, RULES, decide
from throughline.records import BehaviourCheck, EvaluationRecord, GateDecision, Interval, Metrics, SliceMetrics
from throughline.usecase import Bound

NOW = datetime(2013, 4, 1, 12, tzinfo=UTC)
BOUNDS = {
    "auc": Bound(at_least=0.72, below=0.80),
    "log_loss_under_constant": Bound(at_least=0.02),
    "log_loss_over_champion": Bound(at_most=0.002),
    "ece": Bound(at_most=0.08),
}
MODEL = a_model(trained_until=NOW - timedelta(days=20))


def evaluation(**changes) -> EvaluationRecord:
    """A champion is compared with, unless `changes` have none."""
    return an_evaluation(MODEL, NOW, **{"champion": metrics(log_loss=0.46), "champion_model": "u/1", **changes})


def verdicts(decision: GateDecision) -> dict[str, str]:
    return {rule.rule: rule.verdict for rule in decision.rules}


def test_a_good_candidate_is_released_with_its_reasons():
    decision = decided(evaluation(), MODEL, BOUNDS, NOW)
    assert decision.decision == "release"
    assert (decision.model, decision.sha256, decision.decided_at) == (MODEL.reference, MODEL.sha256, NOW)
    assert set(verdicts(decision)) == {"evaluation", *BOUNDS}


def test_without_a_champion_the_constant_is_the_baseline():
    no_champion = {"champion": None, "champion_model": None}
    decision = decided(evaluation(**no_champion), MODEL, BOUNDS, NOW)
    assert decision.decision == "release"
    assert NO_CHAMPION in decision.reasons
    poor = metrics(log_loss=0.52)
    assert decided(evaluation(**no_champion, candidate=poor), MODEL, BOUNDS, NOW).decision == "reject"


@pytest.mark.parametrize(
    ("candidate", "rule"),
    [
        (metrics(auc=0.7199), "auc"),
        (metrics(auc=0.80), "auc"),  # too good: a leak
        (metrics(ece=0.081), "ece"),
        (metrics(log_loss=0.4621), "log_loss_over_champion"),
        (metrics(log_loss=0.511), "log_loss_under_constant"),
    ],
)
def test_one_failed_rule_rejects(candidate, rule):
    decision = decided(evaluation(candidate=candidate), MODEL, BOUNDS, NOW)
    assert decision.decision == "reject"
    assert verdicts(decision)[rule] == "fail"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "u/1"}, "is of u/1"),
        ({"sha256": "e" * 64}, "another file"),
        ({"dataset_fingerprint": "g"}, "another dataset"),
        ({"evaluated_at": NOW - timedelta(days=2)}, "stale"),
        ({"evaluated_at": NOW + timedelta(minutes=1)}, "stale"),
        ({"holdout_from": NOW - timedelta(days=30)}, "into the held-out rows"),
    ],
)
def test_an_evaluation_of_something_else_or_of_another_time_rejects(changes, reason):
    decision = decided(evaluation(**changes), MODEL, BOUNDS, NOW)
    assert decision.decision == "reject"
    assert reason in decision.reasons


def test_a_comparison_with_a_former_champion_rejects():
    new = MODEL.model_copy(update={"version": 1})
    newer = MODEL.model_copy(update={"version": 3})
    assert decide(evaluation(), MODEL, BOUNDS, NOW, new.reference).decision == "release"
    assert decide(evaluation(), MODEL, BOUNDS, NOW, newer.reference).decision == "reject"
    assert decide(evaluation(), MODEL, BOUNDS, NOW, None).decision == "reject"


def test_a_missing_evaluation_rejects():
    decision = decided(None, MODEL, BOUNDS, NOW)
    assert decision.decision == "reject"
    assert set(verdicts(decision).values()) == {"cannot_say"}


def test_no_rules_reject():
    assert decided(evaluation(), MODEL, {}, NOW).decision == "reject"


def test_an_unknown_rule_or_one_without_a_bound_rejects():
    assert decided(evaluation(), MODEL, {"auc": Bound()}, NOW).decision == "reject"
    unknown = {**BOUNDS, "beauty": Bound(at_least=0)}
    assert verdicts(decided(evaluation(), MODEL, unknown, NOW))["beauty"] == "cannot_say"


def test_a_champion_without_numbers_or_numbers_without_a_champion_reject():
    assert decided(evaluation(champion=None), MODEL, BOUNDS, NOW).decision == "reject"
    nan = metrics(log_loss=float("nan"))
    assert decided(evaluation(champion=nan), MODEL, BOUNDS, NOW).decision == "reject"


def test_candidate_and_champion_on_different_rows_are_not_compared():
    other = metrics(log_loss=0.46).model_copy(update={"rows": 99})
    decision = decided(evaluation(champion=other), MODEL, BOUNDS, NOW)
    assert verdicts(decision)["log_loss_over_champion"] == "cannot_say"
    assert decision.decision == "reject"
    alike = evaluation(champion=other, beside_champion=metrics().model_copy(update={"rows": 99}))
    assert decided(alike, MODEL, BOUNDS, NOW).decision == "release"


NAN = float("nan")


def a_slice(value: str, gain: float = 0.1, low: float = -0.1) -> SliceMetrics:
    return SliceMetrics(
        column="origin", value=value, metrics=metrics(), base_rate=0.2, mean_score=0.2, log_loss_under_constant=gain,
        log_loss_over_champion=-0.05, over_champion_interval=Interval(low=low, high=0.1), caught=0.5,
    )  # fmt: skip


OF_SEVERAL = {
    "slice_log_loss_under_constant": lambda values: {"slices": [a_slice(str(i), gain=v) for i, v in enumerate(values)]},
    "slice_log_loss_over_champion": lambda values: {"slices": [a_slice(str(i), low=-v) for i, v in enumerate(values)]},
    "disparity_calibration": lambda values: {"disparity": {str(i): {"calibration": -v} for i, v in enumerate(values)}},
    "broken_behaviour": lambda values: {
        "behaviour": [BehaviourCheck(name=str(i), rows=9, broken=-v, mean_change=0) for i, v in enumerate(values)]
    },
    "missing_source": lambda values: {"missing": {str(i): -v for i, v in enumerate(values)}},
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("rule", OF_SEVERAL)
def test_one_of_several_numbers_that_is_not_finite_never_releases(rule, place):
    """max and min pass over a NaN, or not, by where it stands."""
    bounds = {rule: Bound(at_least=0) if rule.endswith("constant") else Bound(at_most=0)}
    values = [0.1, 0.2, 0.3]
    assert decided(evaluation(**OF_SEVERAL[rule](values)), MODEL, bounds, NOW).decision == "release"
    for unknown in (NAN, float("inf"), float("-inf")):
        values[place] = unknown
        decision = decided(evaluation(**OF_SEVERAL[rule](values)), MODEL, bounds, NOW)
        assert (decision.decision, verdicts(decision)[rule]) == ("reject", "cannot_say")


numbers = st.one_of(st.floats(), st.just(float("nan")), st.sampled_from([0.45, 0.76, 0.03]))
any_metrics = st.builds(Metrics, rows=st.just(9), log_loss=numbers, auc=numbers, brier=numbers, ece=numbers)


@settings(max_examples=200)
@given(any_metrics, any_metrics, st.one_of(st.none(), any_metrics))
def test_released_means_every_number_is_finite_and_within_its_bound(candidate, constant, champion):
    record = evaluation(
        candidate=candidate, constant=constant, champion=champion, champion_model=None if champion is None else "u/1"
    )
    decision = decided(record, MODEL, BOUNDS, NOW)
    over = None if champion is None else candidate.log_loss - champion.log_loss
    sound = (
        0.72 <= candidate.auc < 0.80
        and 0.02 <= constant.log_loss - candidate.log_loss < float("inf")
        and float("-inf") < candidate.ece <= 0.08
        and (over is None or float("-inf") < over <= 0.002)
    )
    assert (decision.decision == "release") == sound


@settings(max_examples=50)
@given(st.sampled_from(["candidate", "constant", "champion"]), st.sampled_from(["log_loss", "auc", "ece"]))
def test_a_nan_that_a_rule_reads_never_releases(who, name):
    is_read = (who == "candidate") or name == "log_loss"
    changed = getattr(evaluation(), who).model_copy(update={name: float("nan")})
    decision = decided(evaluation(**{who: changed}), MODEL, BOUNDS, NOW)
    assert (decision.decision == "reject") == is_read


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_whose_number_is_nan_cannot_say(rule):
    unknown = metrics(log_loss=float("nan"), auc=float("nan"), ece=float("nan"))
    decision = decided(evaluation(candidate=unknown, champion=unknown), MODEL, {rule: Bound(at_most=1e9)}, NOW)
    assert verdicts(decision)[rule] == "cannot_say"
    assert decision.decision == "reject"
