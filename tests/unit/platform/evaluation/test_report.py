"""The page has the values of the record, in one file, with every text escaped."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from throughline.evaluation.report import number, render
from throughline.records import (
    BehaviourCheck,
    EvaluationRecord,
    GateDecision,
    Interval,
    Metrics,
    ReliabilityBin,
    RuleVerdict,
    ServingCost,
    SliceMetrics,
)

NOW = datetime(2013, 4, 1, tzinfo=UTC)
METRICS = Metrics(rows=9000, log_loss=0.4321, auc=0.7654, brier=0.14, ece=0.02)


def a_slice(value: str, over: float | None = 0.01) -> SliceMetrics:
    return SliceMetrics(
        column="origin", value=value, metrics=METRICS, base_rate=0.2, mean_score=0.2, log_loss_under_constant=0.05,
        log_loss_over_champion=over, over_champion_interval=over and Interval(low=0.0, high=0.02), caught=0.5,
    )  # fmt: skip


def record(**changes) -> EvaluationRecord:
    fields = {
        "model": "u/2", "sha256": "d" * 64, "dataset_fingerprint": "f" * 32, "evaluated_at": NOW, "holdout_from": NOW,
        "holdout_until": NOW, "candidate": METRICS, "constant": METRICS, "champion": METRICS, "champion_model": "u/1",
        "days": 14, "intervals": {"over_champion": {"log_loss": Interval(low=-0.0123, high=0.0456)}},
        "reliability": {"candidate": [ReliabilityBin(mean_score=0.2, outcome_rate=0.25, rows=900)]},
        "slices": [a_slice("JFK"), a_slice("<b>LGA</b>")], "missing": {"weather": 0.01},
        "behaviour": [BehaviourCheck(name="up", rows=10, broken=0.125, mean_change=0.1)],
        "disparity": {"origin": {"calibration": 0.0345, "opportunity": float("nan")}},
        "cost": ServingCost(latency_p50_ms=0.1, latency_p95_ms=0.2, size_bytes=1_500_000), "training": METRICS,
    }  # fmt: skip
    return EvaluationRecord(**{**fields, **changes})


def test_the_page_has_the_values_of_the_record() -> None:
    rules = [RuleVerdict(rule="auc", verdict="fail", value=0.85, bound="below 0.8", where="<i>here</i>")]
    decision = GateDecision(model="u/2", sha256="d" * 64, decision="reject", decided_at=NOW, rules=rules)
    page = render(record(), decision)
    for expected in (
        "u/2",
        "9,000 rows of 14 days",
        "0.4321",
        "-0.0123 to 0.0456",
        "0.1250",
        "0.0345",
        "cannot be computed",
    ):
        assert expected in page
    for expected in ("reject", "0.8500", "below 0.8", "1.5000 MB"):
        assert expected in page
    assert "src=" not in page  # it needs nothing else
    assert 'href="http' not in page


def test_texts_are_escaped() -> None:
    rules = [RuleVerdict(rule="auc", verdict="fail", value=None, bound="", where="<script>x</script>")]
    decision = GateDecision(model="u/2", sha256="d" * 64, decision="reject", decided_at=NOW, rules=rules)
    page = render(record(model="<b>u/2"), decision)
    assert "<script>" not in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"champion": None, "champion_model": None, "slices": [a_slice("JFK", None)]},
        {"slices": [], "missing": {}, "behaviour": [], "disparity": {}, "reliability": {}, "cost": None},
        {"candidate": METRICS.model_copy(update={"log_loss": float("nan")}), "training": None, "intervals": {}},
    ],
)
def test_missing_numbers_are_left_out_and_the_page_is_complete(changes) -> None:
    page = render(record(**changes))
    assert page.rstrip().endswith("</html>")


def test_the_same_record_is_the_same_page() -> None:
    assert render(record()) == render(record())


def test_numbers_have_four_digits_after_the_point() -> None:
    assert [number(value) for value in (0.12345, float("nan"), None, 12345.6)] == [
        "0.1235",
        "cannot be computed",
        "cannot be computed",
        "12,346",
    ]
