"""The number that a rule reads: the worst of several, and none when one of them is not finite."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from tests.support.judged import a_metric as metrics
from tests.support.judged import a_model, an_evaluation
from throughline.evaluation.gate import RULES, former_champion
from throughline.records import EvaluationRecord, ModelRecord

NOW = datetime(2013, 4, 1, 12, tzinfo=UTC)
NAN = float("nan")


def evaluation(**changes: object) -> EvaluationRecord:
    """Not validated: the gate must survive a damaged record."""
    return an_evaluation(a_model(trained_until=NOW), NOW).model_copy(update=changes)


def test_of_several_numbers_the_worst_counts_and_is_named() -> None:
    found = evaluation(
        missing={"weather": 0.01, "traffic": 0.03, "planes": 0.02},
        disparity={"carrier": {"calibration": 0.1, "opportunity": 0.3}, "dest": {"calibration": 0.2, "opportunity": 0}},
    )
    assert RULES["missing_source"](found) == (0.03, "traffic")
    assert RULES["disparity_calibration"](found) == (0.2, "dest")
    assert RULES["disparity_opportunity"](found) == (0.3, "carrier")


@pytest.mark.parametrize("lost", [NAN, math.inf, -math.inf, None])
@pytest.mark.parametrize("views", [("a", "lost", "b"), ("lost", "a", "b"), ("a", "b", "lost")])
def test_one_of_several_that_cannot_be_had_leaves_no_number_and_is_named(lost: float | None, views: tuple) -> None:
    rises = {view: lost if view == "lost" else 0.01 for view in views}
    assert RULES["missing_source"](evaluation(missing=rises)) == (None, "lost")


def test_of_two_that_cannot_be_had_the_first_is_named() -> None:
    assert RULES["missing_source"](evaluation(missing={"a": NAN, "b": None, "c": 0.1})) == (None, "a")


def test_where_none_was_judged_there_is_no_number() -> None:
    assert RULES["missing_source"](evaluation(missing={})) == (None, "none was judged")


def test_the_generalisation_gap_compares_the_gains_over_each_sides_own_constant() -> None:
    rate = 0.2
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    found = evaluation(base_rate=rate, training=metrics(0.40))
    gap, where = RULES["generalisation_gap"](found)
    assert gap == pytest.approx((entropy - 0.40) - (0.53 - 0.45))
    assert where == ""


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.1, NAN])
def test_without_both_classes_in_the_training_rows_there_is_no_generalisation_gap(rate: float) -> None:
    assert RULES["generalisation_gap"](evaluation(base_rate=rate, training=metrics(0.4)))[0] is None


def test_without_what_it_was_trained_on_there_is_no_generalisation_gap() -> None:
    assert RULES["generalisation_gap"](evaluation(base_rate=0.2, training=None))[0] is None


def test_a_former_champion_fails_and_the_command_that_brings_it_back_is_named() -> None:
    model = ModelRecord(
        name="u", version=2, run_id="r", sha256="d" * 64, uri="", dataset_fingerprint="f", trained_until=NOW,
        trainer="t", parameters={},
    )  # fmt: skip
    verdict = former_champion(model)
    assert (verdict.rule, verdict.verdict, verdict.value) == ("former_champion", "fail", None)
    assert "`throughline promote u/2`" in verdict.bound
