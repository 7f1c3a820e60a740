"""A mismatch has both values; without a comparison there is no verdict; the sample depends on the seed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.featurestore.parity import Mismatch, ViewParity, compare, draw

AT = datetime(2013, 4, 1, tzinfo=UTC)
NAN = float("nan")
ENTITIES = [{"place": "a"}, {"place": "b"}]


def compared(online: list[Any], offline: list[Any]) -> ViewParity:
    return compare("v", AT, ENTITIES, [{"f": value} for value in online], [{"f": value} for value in offline])


@pytest.mark.parametrize(
    ("online", "offline", "verdict", "values"),
    [
        ([1.0, "x"], [1.0, "x"], "equal", 2),
        ([1.0, None], [1.0, NAN], "equal", 1),
        ([None, None], [None, NAN], "cannot_say", 0),
        ([1.0, None], [1.0, 2.0], "different", 2),
        ([1.0, 2.0], [1.0, None], "different", 2),
        ([1.0, 2.0], [1.0, 2.0000000000000004], "different", 2),
        ([0.0, False], [0.0, True], "different", 2),
    ],
)
def test_the_verdict(online: list[Any], offline: list[Any], verdict: str, values: int) -> None:
    found = compared(online, offline)
    assert (found.verdict, found.values) == (verdict, values)


def test_a_difference_names_view_entity_feature_and_both_values() -> None:
    found = compared([1.0, 2.0], [1.0, 3.0])
    assert found.mismatches == [Mismatch("v", {"place": "b"}, "f", 2.0, 3.0)]
    assert found.reason == "1 of 2 values differ, first f of b: 2.0 online, 3.0 offline"


def test_without_a_record_or_a_value_there_is_no_verdict() -> None:
    assert ViewParity("v", None, 0, 0, []).verdict == "cannot_say"
    assert "no state is recorded" in ViewParity("v", None, 0, 0, []).reason
    assert compare("v", AT, [], [], []).reason == "no value to compare"


def test_sides_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare("v", AT, ENTITIES, [{"f": 1}], [{"f": 1}, {"f": 1}])


@given(st.sets(st.integers(), max_size=30), st.integers(1, 40), st.integers())
def test_a_sample_depends_on_the_seed_and_not_on_the_order(numbers: set[int], size: int, seed: int) -> None:
    entities = [{"n": number} for number in numbers]
    drawn = draw(entities, size, seed)
    assert len(drawn) == min(size, len(numbers))
    assert {one["n"] for one in drawn} <= numbers
    assert draw(list(reversed(entities)), size, seed) == drawn


def test_other_seeds_draw_others() -> None:
    entities = [{"n": number} for number in range(1000)]
    assert draw(entities, 10, 1) != draw(entities, 10, 2)
