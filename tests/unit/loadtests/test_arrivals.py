"""Requests are due at drawn instants that follow the declared rates."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.arrivals import Phase, due, peak, scaled

rates = st.floats(0.5, 50)
phases = st.lists(st.builds(Phase, st.floats(0.1, 5), rates, st.one_of(st.none(), rates)), min_size=1, max_size=4)


@given(phases, st.integers(0, 1000))
def test_instants_ascend_and_lie_within_the_phases(declared, seed):
    instants = list(due(declared, seed))
    assert all(earlier <= later for earlier, later in pairwise(instants))
    assert all(0 <= instant <= sum(phase.seconds for phase in declared) + 1e-6 for instant in instants)


@given(phases, st.integers(0, 1000))
def test_as_many_are_due_as_the_rates_say(declared, seed):
    expected = sum(phase.expected for phase in declared)
    # six standard deviations of a Poisson count
    assert abs(len(list(due(declared, seed))) - expected) <= 6 * math.sqrt(expected) + 6


def test_a_ramp_has_its_rate_at_every_point():
    instants = list(due([Phase(100, 0, 100)], seed=1))
    half = sum(instant < 50 for instant in instants)
    assert half / len(instants) == pytest.approx(0.25, abs=0.03)


@given(st.builds(Phase, st.floats(0.1, 5), rates, st.one_of(st.none(), rates)), st.floats(0, 1))
def test_the_offset_of_a_count_is_where_the_rate_adds_up_to_it(phase, share):
    count = share * phase.expected
    offset = phase.offset(count)
    slope = (phase.end_rate - phase.rate) / phase.seconds
    assert phase.rate * offset + slope * offset**2 / 2 == pytest.approx(count, rel=1e-6, abs=1e-6)


def test_the_same_seed_draws_the_same_instants():
    assert list(due([Phase(5, 50)], 1)) == list(due([Phase(5, 50)], 1)) != list(due([Phase(5, 50)], 2))


@given(phases, rates, st.floats(0.5, 100))
def test_a_scaled_course_has_the_peak_and_the_length_asked_for(declared, rate, seconds):
    changed = scaled(declared, rate, seconds)
    assert peak(changed) == pytest.approx(rate)
    assert sum(phase.seconds for phase in changed) == pytest.approx(seconds)
    assert scaled(declared) == tuple(declared)
