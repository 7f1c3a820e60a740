"""Each level can be missed, a figure that is unknown is a miss, and a report shows the verdict."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from loadtests.bad_clients import KINDS, Outcomes
from loadtests.charts import chart
from loadtests.levels import (
    Figures,
    Latencies,
    Levels,
    Measured,
    Sample,
    figures,
    missed,
    percentile,
    slope_per_minute,
)
from loadtests.report import Result, as_json, render, verdict_line
from loadtests.scenarios import SCENARIOS

LEVELS = Levels({1: Latencies(10, 50, 100), 10: Latencies(20, 80, 150)}, memory_mb_per_min=1.0)
KEPT = Measured(
    requests=100,
    seconds=10,
    failed_share=0,
    logged_share=1,
    figures=(Figures(1, 50, 10, 50, 100, 0), Figures(10, 50, 20, 80, 150, 0)),
    memory_mb_per_min=1.0,
)


def test_figures_at_their_bounds_keep_every_level():
    assert missed(LEVELS, KEPT) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"failed_share": 0.001}, "failed_share 0.001 > 0"),
        ({"logged_share": 0.999}, "logged_share 0.999 < 1"),
        ({"logged_share": math.nan}, "logged_share nan < 1"),
        ({"memory_mb_per_min": 1.5}, "memory_mb_per_min 1.5 > 1"),
        ({"memory_mb_per_min": None}, "memory_mb_per_min nan > 1"),
        ({"problems": ("bad client slow: 500, 1 times",)}, "bad client slow: 500, 1 times"),
        ({"figures": (replace(KEPT.figures[0], p50_ms=11), KEPT.figures[1])}, "p50_ms 11 > 10"),
        ({"figures": (KEPT.figures[0], replace(KEPT.figures[1], p99_ms=151))}, "p99_ms 151 > 150 at 10 rows"),
        ({"requests": 0}, "no request was answered"),
    ],
)
def test_each_level_can_be_missed(change, named):
    assert missed(LEVELS, replace(KEPT, **change)) == [named]


def test_rows_that_were_never_requested_miss_their_levels():
    assert len(missed(LEVELS, replace(KEPT, figures=KEPT.figures[:1]))) == 3


def test_figures_stand_by_rows_and_count_failed_requests():
    samples = [Sample(0, rows, latency, 0, None) for rows in (10, 1) for latency in range(1, 101)]
    samples.append(Sample(0, 1, 1000, 0, "503"))
    one, ten = figures(samples)
    assert (one.rows, one.requests, ten.rows, ten.requests) == (1, 101, 10, 100)
    assert ten.p50_ms == pytest.approx(50.5)
    assert one.p99_ms > ten.p99_ms


def test_percentiles_of_nothing_and_of_one_value():
    assert math.isnan(percentile([], 99))
    assert percentile([3.0], 50) == 3.0


def test_the_slope_of_memory_is_per_minute():
    assert slope_per_minute([(0, 100), (60, 102), (120, 104)]) == pytest.approx(2)
    assert math.isnan(slope_per_minute([(0, 100), (60, 102)]))


def test_an_outcome_that_a_kind_does_not_permit_is_a_problem():
    outcomes = Outcomes()
    for kind, known in KINDS.items():
        outcomes.record(kind, min(known.right))
    assert outcomes.problems() == []
    outcomes.record("malformed", "500")
    outcomes.record("half-closed", "no answer")
    assert outcomes.problems() == ["bad client malformed: 500, 1 times", "bad client half-closed: no answer, 1 times"]


def test_a_kind_that_was_never_tried_is_a_problem():
    assert "bad client oversize was never tried" in Outcomes().problems()


def result(**change: object) -> Result:
    samples = [Sample(n / 10, 1, 5.0 + n % 7, 0, "503: <b>" if n == 30 else None) for n in range(70)]
    measured = replace(KEPT, figures=figures(samples), failures={"503: <b>": 1}, memory_mb_per_min=None, **change)
    return Result(SCENARIOS["steady"], measured, samples, [(0, 100), (5, 101)], [3.0])


def test_the_verdict_line_names_what_was_missed():
    assert verdict_line([result()]).startswith("PASS")
    line = verdict_line([result(), result(failed_share=0.5)])
    assert line.startswith("FAIL: 1 of 2 scenarios")
    assert "failed_share 0.5 > 0" in line


def test_the_json_form_has_its_documented_keys():
    printed = as_json([result(failed_share=0.5)], "page.html")
    assert printed["verdict"] == "fail"
    assert printed["report"] == "page.html"
    (scenario,) = printed["scenarios"]
    assert set(scenario) == {
        "name", "requests", "seconds", "per_second", "failed_share", "logged_share", "latency", "failures",
        "memory_mb_per_min", "facts", "missed",
    }  # fmt: skip
    assert set(scenario["latency"][0]) == {"rows", "requests", "p50_ms", "p95_ms", "p99_ms", "late_p99_ms"}


def test_the_page_stands_alone_and_shows_verdict_charts_and_failures():
    page = render([result(failed_share=0.5)], {"cores": "2"}, datetime(2026, 1, 1, tzinfo=UTC))
    assert "FAIL: 1 of 1" in page
    assert page.count("<svg") == 3
    assert "503: &lt;b&gt;" in page
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_chart_breaks_its_line_where_a_value_is_unknown_and_of_nothing_is_empty():
    drawn = chart({"p50": [(0, 1), (1, 2), (2, math.nan), (3, 4), (4, 5)]}, 5, "ms", logarithmic=True)
    assert drawn.count("<polyline") == 2
    assert chart({"p50": [(0, math.nan)]}, 5, "ms") == ""


def test_the_short_set_with_its_pauses_fits_into_its_time():
    assert sum(scenario.seconds for scenario in SCENARIOS.values() if scenario.short) <= 34
