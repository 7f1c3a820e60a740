"""Metrics are the field's own, and NaN where there is no answer."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.judged import a_model as record_of_model
from tests.support.judged import decided
from throughline.evaluation.evaluate import Rows, evaluate, read_rows
from throughline.evaluation.report import render
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.models.metrics import expected_calibration_error, metrics_of, reliability
from throughline.records import DatasetRecord, EvaluationRecord, ModelRecord
from throughline.usecase import Bound, Evaluation, get_usecase

HOLDOUT = datetime(2013, 3, 1, tzinfo=UTC)

pairs = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=60)


@settings(max_examples=60)
@given(pairs)
def test_metrics_agree_with_scikit_learn(drawn):
    from sklearn import metrics as sk

    scores, labels = (np.array(column, float) for column in zip(*drawn, strict=True))
    ours = metrics_of(scores, labels)
    assert ours.log_loss == pytest.approx(sk.log_loss(labels, np.float64(scores), labels=[0, 1]), rel=1e-6, abs=1e-9)
    assert ours.brier == pytest.approx(np.mean((scores - labels) ** 2))
    if 0 < labels.sum() < len(labels):
        assert ours.auc == pytest.approx(sk.roc_auc_score(labels, scores))
    else:
        assert math.isnan(ours.auc)


@settings(max_examples=60)
@given(pairs, st.randoms())
def test_calibration_does_not_depend_on_the_order_of_rows(drawn, random):
    shuffled = random.sample(drawn, len(drawn))
    one, other = (
        expected_calibration_error(*(np.array(c, float) for c in zip(*d, strict=True))) for d in (drawn, shuffled)
    )
    assert one == pytest.approx(other)
    assert 0 <= one <= 1


def test_a_constant_is_as_far_off_as_its_distance_to_the_rate():
    labels = np.array([0.0] * 80 + [1.0] * 20)
    assert metrics_of(np.full(100, 0.5), labels).ece == pytest.approx(0.3)
    assert metrics_of(np.full(100, 0.2), labels).ece == pytest.approx(0.0)
    assert metrics_of(np.full(100, 0.2), labels).auc == 0.5


def test_bins_hold_equally_many_rows():
    scores = np.random.default_rng(0).beta(1, 9, 1000)
    assert [one.rows for one in reliability(scores, np.zeros(1000))] == [100] * 10


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([], []), ([float("nan"), 0.5], [0, 1]), ([1.5, 0.5], [0, 1]), ([0.5, 0.5], [float("nan"), 1]), ([-0.1], [0])],
)
def test_what_cannot_be_computed_is_nan(scores, labels):
    found = metrics_of(np.array(scores, float), np.array(labels, float))
    assert found.rows == len(scores)
    assert all(math.isnan(value) for value in (found.log_loss, found.auc, found.brier, found.ece))


class Stub:
    """Has one score for every row."""

    sha256, size_bytes, numeric = "d" * 64, 1000, ()

    def __init__(self, answer: float | Exception) -> None:
        self._answer = answer

    def score(self, features: pl.DataFrame) -> np.ndarray:
        if isinstance(self._answer, Exception):
            raise self._answer
        return np.full(features.height, self._answer)

    def outside_domain(self, features: pl.DataFrame) -> list[list[str]]:
        return [[] for _ in range(features.height)]


def a_dataset(path: str = "") -> DatasetRecord:
    return DatasetRecord(
        usecase="u",
        table=TableReference("u/training/dataset", 0),
        path=path,
        fingerprint="f",
        as_of=HOLDOUT + timedelta(days=14),
        rows=4,
        numeric=[],
        categorical=[],
        inputs=[],
        holdout_from=HOLDOUT,
    )


def a_model(version: int) -> ModelRecord:
    return record_of_model(version, trained_until=HOLDOUT - timedelta(days=1))


FRAME = pl.DataFrame(
    {
        "prediction_time": [HOLDOUT + timedelta(days=day) for day in (-9, -8, -1, 0, 1, 2)],
        "label_available_at": [HOLDOUT + timedelta(days=day, hours=6) for day in (-9, -8, 0, 0, 1, 2)],
        "label": [0, 1, 1, 0, 1, 0],
    }
)


BARE = get_usecase("flight_delay").model_copy(update={"evaluation": Evaluation(holdout="14d")})
NOW = HOLDOUT + timedelta(days=14)


def judged(
    answer: float | Exception, rows: pl.DataFrame = FRAME[3:], champion: float | Exception | None = None
) -> EvaluationRecord:
    rival = None if champion is None else (Stub(champion), a_model(1))
    held = Rows(holdout=rows, before=FRAME[:2], base_rate=0.3)
    return evaluate(BARE, Stub(answer), a_model(2), held, a_dataset(), NOW, rival)


def test_the_holdout_begins_at_its_instant_and_the_base_rate_is_of_what_was_known_then(tmp_path):
    FRAME.with_columns(row_key=pl.lit("r")).write_delta(str(tmp_path / "t"))
    rows = read_rows(a_dataset(str(tmp_path / "t")))
    assert rows.holdout["prediction_time"].min() == HOLDOUT
    assert rows.holdout.height == 3
    assert rows.before["label"].to_list() == [0, 1]  # the third row's label came after the holdout began
    assert rows.base_rate == 0.5


def test_all_three_are_judged_on_the_same_rows():
    record = judged(0.4, champion=0.2)
    assert record.candidate.rows == record.constant.rows == record.champion.rows == 3
    assert (record.model, record.champion_model) == (ModelReference("u", 2), ModelReference("u", 1))
    assert record.constant.log_loss < record.candidate.log_loss
    assert record.holdout_until == FRAME["prediction_time"][-1]


def test_a_champion_that_cannot_score_these_rows_has_no_numbers():
    record = judged(0.4, champion=ThroughlineError("other"))
    assert record.champion_model == ModelReference("u", 1)
    assert math.isnan(record.champion.log_loss)


def test_an_empty_holdout_is_refused():
    with pytest.raises(ThroughlineError, match="nothing was held out"):
        judged(0.4, FRAME.head(0))


def test_a_record_with_nan_survives_storage():
    record = judged(float("nan"))
    read = EvaluationRecord.model_validate_json(record.model_dump_json())
    assert math.isnan(read.candidate.auc)


def test_a_declaration_that_looks_at_columns_the_rows_lack_is_refused_and_they_are_named():
    declared = get_usecase("flight_delay")
    rows = Rows(holdout=FRAME[3:], before=FRAME[:2], base_rate=0.3)
    with pytest.raises(ThroughlineError, match=f"names .*{declared.evaluation.simple_rule.feature}.* does not have"):
        evaluate(declared, Stub(0.5), a_model(2), rows, a_dataset(), NOW)


# A version is judged only on rows after all that it learned from


def long_holdout(days: int = 14) -> pl.DataFrame:
    """A row at noon of each of so many days, every third positive; its label is known six hours later."""
    times = [HOLDOUT + timedelta(days=day, hours=12) for day in range(days)]
    return pl.DataFrame(
        {
            "prediction_time": times,
            "label_available_at": [time + timedelta(hours=6) for time in times],
            "label": [int(day % 3 == 0) for day in range(days)],
        }
    )


def against_champion_trained_until(until: datetime, candidate: float = 0.35, champion: float = 0.3) -> EvaluationRecord:
    """What `train --as-of` with an earlier day gives while a champion of later days serves."""
    rival = Stub(champion), a_model(1).model_copy(update={"trained_until": until})
    held = Rows(holdout=long_holdout(), before=FRAME[:2], base_rate=0.3)
    return evaluate(BARE, Stub(candidate), a_model(2), held, a_dataset(), NOW, rival)


OVER_CHAMPION = {"log_loss_over_champion": Bound(at_most=0.5)}


@pytest.mark.parametrize("bounds", [OVER_CHAMPION, {"log_loss_under_constant": Bound(at_least=-1)}])
def test_a_champion_that_learned_from_the_held_out_rows_is_left_out_and_the_gate_cannot_pass(bounds):
    record = against_champion_trained_until(datetime(2013, 3, 18, tzinfo=UTC))
    decision = decided(record, a_model(2), bounds, NOW)
    assert decision.decision == "reject", f"released over a champion trained on these rows: {decision.reasons}"
    assert (record.champion, record.champion_model) == (None, ModelReference("u", 1))
    assert "learned from held-out rows until 2013-03-18 00:00 UTC" in decision.failures
    assert "cannot say" in decision.failures
    assert all(one.log_loss_over_champion is None for one in record.slices)


def test_of_a_champion_that_learned_from_some_of_the_rows_the_later_ones_are_compared_with_the_candidate_on_the_same():
    until = HOLDOUT + timedelta(days=8, hours=1)
    record = against_champion_trained_until(until)
    later = long_holdout().filter(pl.col("prediction_time") > until)
    assert (later.height, record.candidate.rows, record.constant.rows) == (6, 14, 14)
    assert (record.champion.rows, record.beside_champion.rows) == (6, 6)
    labels = later["label"].to_numpy()
    assert record.champion.log_loss == pytest.approx(metrics_of(np.full(6, 0.3), labels).log_loss)
    decision = decided(record, a_model(2), OVER_CHAMPION, NOW)
    (rule,) = [rule for rule in decision.rules if rule.rule == "log_loss_over_champion"]
    ours = metrics_of(np.full(6, 0.35), labels).log_loss
    assert (rule.verdict, rule.value) == ("pass", pytest.approx(ours - record.champion.log_loss))
    assert "compared on the 6 rows after that" in rule.where
    assert set(record.intervals) >= {"candidate", "champion", "over_champion"}


@pytest.mark.parametrize(("left", "compared"), [(5, True), (4, False)])
def test_fewer_days_than_the_minimum_do_not_compare(left, compared):
    record = against_champion_trained_until(HOLDOUT + timedelta(days=13 - left, hours=13))
    assert (record.champion is not None) == compared
    assert (decided(record, a_model(2), OVER_CHAMPION, NOW).decision == "release") == compared


def test_a_row_at_the_very_instant_up_to_which_the_champion_learned_does_not_compare():
    record = against_champion_trained_until(HOLDOUT + timedelta(days=3, hours=12))
    assert record.champion.rows == 10


def test_a_champion_of_earlier_rows_is_compared_on_all_of_them():
    record = against_champion_trained_until(HOLDOUT - timedelta(hours=1))
    assert (record.champion.rows, record.comparison) == (14, "")


def test_a_candidate_is_judged_on_rows_after_all_that_it_learned_from_and_refused_when_it_learned_from_held_out_ones():
    candidate = a_model(2).model_copy(update={"trained_until": HOLDOUT + timedelta(days=2, hours=12)})
    held = Rows(holdout=long_holdout(), before=FRAME[:2], base_rate=0.3)
    record = evaluate(BARE, Stub(0.35), candidate, held, a_dataset(), NOW)
    assert record.candidate.rows == 11
    decision = decided(record, candidate, {"log_loss_under_constant": Bound(at_least=-1)}, NOW)
    assert (decision.decision, "into the held-out rows" in decision.failures) == ("reject", True)
    of_all = candidate.model_copy(update={"trained_until": HOLDOUT + timedelta(days=30)})
    with pytest.raises(ThroughlineError, match="nothing was held out"):
        evaluate(BARE, Stub(0.35), of_all, held, a_dataset(), NOW)


@pytest.mark.parametrize("until", [HOLDOUT + timedelta(days=8), HOLDOUT + timedelta(days=17)])
def test_report_says_what_limits_the_comparison(until):
    record = against_champion_trained_until(until)
    assert record.comparison[1:] in render(record)
