"""The statistics of a day are those of its rows, and drift judged from them is that of the rows."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.usecase import Drift
from throughline.validation.drift import judge_drift, stability_index
from throughline.validation.statistics import CATEGORIES, PROBABILITIES, SCHEMA, day_statistics

FIRST = date(2013, 1, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(3)]
NUMBERS = {"day": pl.Date, "n": pl.Float64}

numbers = st.one_of(st.none(), st.floats(-1e6, 1e6, width=32))
rows_of_numbers = st.lists(st.tuples(st.sampled_from(DAYS), numbers), max_size=50)


def days(values: np.ndarray | list[str | None], per_day: int = 100, column: str = "x") -> pl.DataFrame:
    """Statistics of a column whose values come `per_day` a day."""
    series = pl.Series(column, values)
    nth = pl.int_range(len(series), eager=True) // per_day
    frame = pl.DataFrame({"day": [FIRST + timedelta(days=int(n)) for n in nth], column: series})
    return day_statistics(frame, frame["day"].unique().sort().to_list())


@given(rows=rows_of_numbers)
def test_figures_of_a_day_are_those_of_its_rows(rows: list[tuple[date, float | None]]) -> None:
    frame = pl.DataFrame(rows, schema=NUMBERS, orient="row")
    found = day_statistics(frame, DAYS)
    assert found["day"].to_list() == DAYS
    for line in found.iter_rows(named=True):
        part = frame.filter(pl.col("day") == line["day"])["n"]
        values = part.drop_nulls().to_numpy()
        assert (line["rows"], line["count"], line["nulls"]) == (part.len(), len(values), part.null_count())
        if not len(values):
            assert line["mean"] is line["minimum"] is None
            continue
        assert line["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert (line["minimum"], line["maximum"]) == (values.min(), values.max())
        assert line["quantiles"][0] == values.min()
        assert line["quantiles"][-1] == values.max()
        assert line["quantiles"] == sorted(line["quantiles"])
        assert set(line["quantiles"]) <= set(values.tolist())
        if len(values) > 1:
            assert line["deviation"] == pytest.approx(values.std(ddof=1), abs=1e-5)


def test_texts_and_booleans_have_frequencies_and_the_rare_ones_are_the_rest() -> None:
    texts = ["a"] * 5 + ["b"] * 2 + [None] + [f"rare {n:03}" for n in range(CATEGORIES)]
    (line,) = days(texts).to_dicts()
    assert line["distinct"] == CATEGORIES + 2
    assert line["categories"][:2] == [{"value": "a", "count": 5}, {"value": "b", "count": 2}]
    assert len(line["categories"]) == CATEGORIES
    assert line["count"] - sum(category["count"] for category in line["categories"]) == 2
    flags = pl.DataFrame({"day": [FIRST] * 3, "b": [True, True, False]})
    (line,) = day_statistics(flags, [FIRST]).to_dicts()
    assert line["categories"] == [{"value": "true", "count": 2}, {"value": "false", "count": 1}]


def test_a_nan_is_no_number_and_an_instant_is_only_counted() -> None:
    frame = pl.DataFrame(
        {"day": [FIRST] * 2, "n": [1.0, math.nan], "t": [datetime(2013, 1, 1, tzinfo=UTC), None]},
    )
    by_column = {line["column"]: line for line in day_statistics(frame, [FIRST]).iter_rows(named=True)}
    assert (by_column["n"]["count"], by_column["n"]["nulls"], by_column["n"]["mean"]) == (1, 1, 1.0)
    assert (by_column["t"]["count"], by_column["t"]["nulls"], by_column["t"]["quantiles"]) == (1, 1, None)


def test_a_day_without_rows_has_statistics_with_a_count_of_zero() -> None:
    found = day_statistics(pl.DataFrame(schema=NUMBERS), DAYS)
    assert found.schema == SCHEMA
    assert found["rows"].to_list() == [0, 0, 0]


@given(
    reference=st.lists(st.integers(0, 1000), min_size=2, max_size=8),
    data=st.data(),
)
def test_the_stability_index_is_the_textbook_sum(reference: list[int], data: st.DataObject) -> None:
    newest = data.draw(st.lists(st.integers(0, 1000), min_size=len(reference), max_size=len(reference)))
    p = (np.array(reference) + 0.5) / (sum(reference) + 0.5 * len(reference))
    q = (np.array(newest) + 0.5) / (sum(newest) + 0.5 * len(newest))
    index = stability_index(np.array(reference), np.array(newest))
    assert index == pytest.approx(float(((p - q) * np.log(p / q)).sum()), abs=1e-9)
    assert index >= -1e-12
    assert stability_index(np.array(newest), np.array(reference)) == pytest.approx(index, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 1.0, 2.0])
def test_drift_from_statistics_is_drift_from_rows(shift: float) -> None:
    """The days' quantiles stand for their rows closely enough to decide by."""
    random = np.random.default_rng(7)
    before, after = random.normal(0, 1, 9000), random.normal(shift, 1, 1400)
    edges = np.quantile(before, np.arange(1, 10) / 10)
    counts = [np.bincount(np.searchsorted(edges, side), minlength=10) for side in (before, after)]
    exact = stability_index(*counts)
    found = judge_drift(days(before), days(after), Drift(columns=["x"]))
    assert found.psi["x"] == pytest.approx(exact, rel=0.15, abs=0.02)
    assert found.result == ("warn" if exact > 0.25 else "pass")


def test_a_rare_value_has_its_weight() -> None:
    """Rain falls in few hours: it is at the edge of a day's quantiles."""
    rain, none = days(([0.0] * 97 + [1.0] * 3) * 10), days([0.0] * 1000)  # type: ignore[arg-type]
    exact = stability_index(np.array([970, 30]), np.array([1000, 0]))
    assert judge_drift(rain, none, Drift(columns=["x"])).psi["x"] == pytest.approx(exact, rel=0.3)


def test_the_same_days_have_not_drifted_and_others_have() -> None:
    random = np.random.default_rng(1)
    same = days(random.exponential(10, 2000))
    assert judge_drift(same, same, Drift(columns=["x"])).psi == {"x": pytest.approx(0)}
    metric = days(random.exponential(10, 2000) * 1.609)  # miles became kilometres
    verdict = judge_drift(same, metric, Drift(columns=["x"], psi=0.1))
    assert verdict.result == "warn"
    assert "x" in verdict.detail


def test_categories_and_nulls_drift_too() -> None:
    usual = days(["a", "b"] * 1000)
    assert judge_drift(usual, usual, Drift(columns=["x"])).result == "pass"
    assert judge_drift(usual, days(["a", "c"] * 1000), Drift(columns=["x"])).result == "warn"
    assert judge_drift(usual, days(["a", "b", None, None] * 500), Drift(columns=["x"])).result == "warn"
    present, gone = days(np.ones(1000)), days([1.0] * 500 + [None] * 500)  # type: ignore[list-item]
    assert judge_drift(present, gone, Drift(columns=["x"])).result == "warn"


def test_too_few_rows_on_either_side_are_no_verdict() -> None:
    few, many = days(np.ones(10)), days(np.ones(1000))
    for sides in ((few, many), (many, few), (many, SCHEMA.to_frame())):
        verdict = judge_drift(*sides, Drift(columns=["x"]))
        assert verdict.result == "cannot_say"
        assert verdict.psi == {}


def test_a_column_without_a_single_value_is_compared_all_the_same() -> None:
    nothing = days(pl.Series([None] * 1000, dtype=pl.Float64))  # type: ignore[arg-type]
    values = days(np.ones(1000))
    for sides in ((nothing, values), (values, nothing)):
        assert judge_drift(*sides, Drift(columns=["x"])).result == "warn"
    assert judge_drift(nothing, nothing, Drift(columns=["x"])).result == "pass"


def test_the_quantiles_are_at_every_twentieth() -> None:
    (line,) = days(np.arange(101.0), per_day=200).to_dicts()
    assert line["quantiles"] == [round(p * 100) for p in PROBABILITIES]
