"""Intervals come from days: they widen with what a day has in common, and a metric under a draw is that of its rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.evaluation.bootstrap import Draws, interval
from throughline.models.metrics import auc, log_loss


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_a_metric_under_a_draw_is_that_of_the_rows_drawn(seed: int, days: int) -> None:
    draw = np.random.default_rng(seed)
    day = draw.integers(0, days, 60)
    scores, labels = draw.integers(0, 9, 60) / 10 + 0.05, draw.integers(0, 2, 60).astype(float)
    draws = Draws.of(day, draws=5, seed=seed)
    found = draws.metrics(scores, labels)
    for number, counts in enumerate(draws.counts):
        rows = np.repeat(np.arange(60), counts[draws.day].astype(int))
        assert found["log_loss"][number] == pytest.approx(log_loss(scores[rows], labels[rows]))
        assert found["brier"][number] == pytest.approx(np.mean((scores[rows] - labels[rows]) ** 2))
        assert found["auc"][number] == pytest.approx(auc(scores[rows], labels[rows]), nan_ok=True)


def test_days_that_differ_make_the_interval_wider_than_rows_would() -> None:
    """Twenty days, on half of which everything is late: that is a sample of twenty, not of two thousand."""
    day = np.repeat(np.arange(20), 100)
    labels = (day % 2).astype(float)
    scores = np.full(2000, 0.5)
    of_days = interval(Draws.of(day).mean(labels))
    of_rows = interval(Draws.of(np.arange(2000)).mean(labels))
    assert of_days is not None
    assert of_rows is not None
    assert of_days.high - of_days.low > 5 * (of_rows.high - of_rows.low)
    assert of_days.low < 0.5 < of_days.high
    assert interval(Draws.of(day).metrics(scores, labels)["log_loss"]).low == pytest.approx(np.log(2))


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        day = np.repeat(np.arange(30), 20)
        values = draw.normal(size=30)[day] + draw.normal(size=600)
        found = interval(Draws.of(day, draws=200, seed=seed).mean(values))
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.98


def test_two_models_on_the_same_draws_are_compared_day_by_day() -> None:
    draw = np.random.default_rng(1)
    day = np.repeat(np.arange(14), 200)
    labels = (draw.random(2800) < 0.1 + 0.5 * (draw.random(14) < 0.4)[day]).astype(float)
    good, worse = np.where(labels == 1, 0.5, 0.3), np.where(labels == 1, 0.48, 0.31)
    draws = Draws.of(day)
    separate = [interval(draws.metrics(scores, labels)["log_loss"]) for scores in (good, worse)]
    assert separate[0].high > separate[1].low  # unpaired intervals overlap
    difference = draws.metrics(worse, labels)["log_loss"] - draws.metrics(good, labels)["log_loss"]
    assert interval(difference).low > 0


def test_too_few_days_or_classes_have_no_interval() -> None:
    one_class = Draws.of(np.arange(10)).metrics(np.full(10, 0.3), np.zeros(10))
    assert interval(one_class["auc"]) is None
    assert interval(np.array([])) is None
    assert not Draws.of(np.zeros(100)).enough
    slice_of_one_day = Draws.of(np.repeat(np.arange(10), 5)).among(np.arange(50) < 5)
    assert interval(slice_of_one_day.mean(np.ones(5))) is None
