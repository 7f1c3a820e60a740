"""The split keeps to the weights, a sticky key keeps its revision, and only shadows get copies."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from serving.router import Router, place_of
from throughline.records import Revision, RevisionSet, Sticky

REQUESTS = 10_000


def revision(name: str, role: str, weight: float) -> Revision:
    return Revision(
        revision=name,
        usecase="u",
        name="u",
        version=1,
        sha256="0" * 64,
        file="1/model.onnx",
        role=role,
        weight=weight,
        deployed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def revisions(canary: float, salt: str | None = None, shadow: float | None = None) -> RevisionSet:
    made = [revision("old", "stable", 1 - canary), revision("new", "canary", canary)]
    if shadow is not None:
        made.append(revision("copy", "shadow", shadow))
    return RevisionSet(usecase="u", revisions=tuple(made), sticky=Sticky(key="k", salt=salt) if salt else None)


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
def test_the_split_of_ten_thousand_requests_is_within_the_binomial_bound(weight: float) -> None:
    router = Router(revisions(weight), random.Random(7).random)
    count = sum(router.choose() == "new" for _ in range(REQUESTS))
    low, high = binom.interval(0.999, REQUESTS, weight)
    assert low <= count <= high


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
def test_the_split_of_sticky_keys_is_within_the_binomial_bound_and_survives_a_restart(weight: float) -> None:
    keys = [f"N{n}" for n in range(REQUESTS)]
    first, restarted = (Router(revisions(weight, "experiment 1"), random.Random(n).random) for n in range(2))
    chosen = [first.choose(key) for key in keys]
    low, high = binom.interval(0.999, REQUESTS, weight)
    assert low <= chosen.count("new") <= high
    assert [restarted.choose(key) for key in keys] == chosen
    another = Router(revisions(weight, "experiment 2"))
    assert [another.choose(key) for key in keys] != chosen


@given(st.text(st.characters(codec="utf-8")) | st.integers(), st.floats(0, 1), st.floats(0, 1))
def test_a_rising_weight_moves_callers_only_to_the_new_revision(key: object, one: float, other: float) -> None:
    low, high = sorted((one, other))
    before, after = (Router(revisions(weight, "s")).choose(key) for weight in (low, high))
    assert (before, after) in {("old", "old"), ("old", "new"), ("new", "new")}
    assert 0 <= place_of("s", key) < 1


@pytest.mark.parametrize(("weight", "chosen"), [(0.0, {"old"}), (1.0, {"new"})])
def test_a_weight_of_nothing_or_all_leaves_nothing_to_chance(weight: float, chosen: set[str]) -> None:
    for salt in (None, "s"):
        router = Router(revisions(weight, salt))
        assert {router.choose(n) for n in range(1000)} == chosen


def test_a_shadow_never_answers_and_gets_its_share_of_copies() -> None:
    router = Router(revisions(0.5, shadow=0.2), random.Random(3).random)
    assert {router.choose() for _ in range(1000)} == {"old", "new"}
    copies = [copy for _ in range(REQUESTS) for copy in router.copies()]
    low, high = binom.interval(0.999, REQUESTS, 0.2)
    assert set(copies) == {"copy"}
    assert low <= len(copies) <= high


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ([("a", "canary", 1.0)], "one stable"),
        ([("a", "stable", 0.5), ("b", "stable", 0.5)], "one stable"),
        ([("a", "stable", 0.5), ("b", "canary", 0.4)], "sum to 1"),
        ([("a", "stable", 1.0), ("b", "canary", 0.5)], "sum to 1"),
        ([("a", "stable", 1.0), ("a", "shadow", 1.0)], "twice"),
    ],
)
def test_a_set_that_does_not_answer_each_request_once_is_refused(made: list, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RevisionSet(usecase="u", revisions=tuple(revision(*one) for one in made))
