"""The test martingale: a bet never has an expectation above 1 under the null hypothesis, whatever the numbers."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.rollout.sequential import EXCESSES, carried, evidence, log_bets

probabilities = st.floats(0, 1)


def binomial(n: int, p: float) -> np.ndarray:
    return np.array([comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@given(
    n_s=st.integers(1, 12), n=st.integers(1, 12), p_s=probabilities, worse=st.floats(-1, 1), predicted=probabilities,
    tolerance=st.floats(0, 0.9),
)  # fmt: skip
def test_within_the_tolerance_the_expected_bet_is_at_most_one(n_s, n, p_s, worse, predicted, tolerance):
    p = min(max(p_s + min(worse, tolerance), 0), 1)
    x_s, x = np.meshgrid(np.arange(n_s + 1), np.arange(n + 1), indexing="ij")
    bets = np.exp(log_bets(n_s, x_s, n, x, predicted, tolerance))
    chances = np.outer(binomial(n_s, p_s), binomial(n, p))
    assert (np.einsum("ij,ijk->k", chances, bets) <= 1 + 1e-9).all()


@given(
    n=st.integers(1, 6), total=st.floats(0, 1), n_s=st.integers(1, 6), total_s=st.floats(0, 1), predicted=probabilities
)
def test_a_bet_wins_at_most_what_its_linear_bound_allows_for_values_between_0_and_1(n, total, n_s, total_s, predicted):
    """A sum of fractions is worth no more than the mixture of zeros and ones with the same mean."""
    bets = np.exp(log_bets(n_s, total_s, n, total, predicted, 0.1))
    corners = np.exp(log_bets(n_s, [[0, 1], [0, 1]], n, [[0, 0], [1, 1]], predicted, 0.1))
    mixed = np.einsum("i,j,ijk->k", [1 - total, total], [1 - total_s, total_s], corners)
    assert (bets <= mixed + 1e-9).all()


@pytest.mark.parametrize(("n_s", "n"), [(0, 5), (5, 0), (0, 0)])
def test_a_window_without_values_on_a_side_changes_nothing(n_s, n):
    assert (log_bets(n_s, n_s, n, n, 0.1, 0.01) == 0).all()


@given(st.lists(st.lists(st.floats(-2, 2), min_size=5, max_size=5), min_size=1, max_size=12))
def test_evidence_is_the_mixture_of_the_products_from_each_start_on(windows):
    log_e = np.array(windows)
    sums = np.full((1, len(EXCESSES)), -np.inf)
    for number, one in enumerate(log_e, 1):
        sums = carried(sums, number, one)
    last = len(log_e)
    expected = 1 / (last + 1) + sum(
        np.exp(log_e[start - 1 :].sum(axis=0)).mean() / (start * (start + 1)) for start in range(1, last + 1)
    )
    assert np.exp(evidence(sums, last)) == pytest.approx(expected)


def test_a_fault_that_begins_after_a_thousand_good_windows_is_found_in_about_as_many_as_one_at_once():
    def until_found(good: int) -> int:
        sums = np.full((1, len(EXCESSES)), -np.inf)
        for number in range(1, 5000):
            failed = 1.0 if number > good else 0.0
            sums = carried(sums, number, log_bets(9, 0, 1, failed, 0.001, 0.01))
            if evidence(sums, number) > np.log(500):
                return number - good
        raise AssertionError("never found")

    assert until_found(0) <= 6
    assert until_found(1000) <= 12
