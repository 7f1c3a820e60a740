"""A ratio above 1 means that we are ahead, the last line is the JSON object, the page gives no machine away."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.page import machine_facts, page
from throughline.foundation.errors import ThroughlineError

FIGURES = {"throughline": {"seconds": report.spread([1.0, 3.0, 2.0])}, "slow": {"failed": "no answer in 300 s"}}


def measured(**changes):
    ratios = {"fast": report.ratio([1.0, 2.0], [0.5, 0.5], higher_is_better=False)}
    figures = {**FIGURES, "fast": {"seconds": report.spread([0.5])}}
    return report.result("point_in_time", True, {"rows": 3}, figures, ratios, "time") | changes


def test_a_ratio_above_one_means_that_we_are_ahead():
    assert report.ratio([1.0], [2.0], higher_is_better=False)["median"] == 2
    assert report.ratio([1.0], [2.0], higher_is_better=True)["median"] == 0.5


def test_a_ratio_is_taken_round_by_round():
    """In the second round the machine was ten times slower for both: that is no difference between them."""
    assert report.ratio([1.0, 10.0], [2.0, 20.0], higher_is_better=False) == report.spread([2.0, 2.0])
    with pytest.raises(ValueError, match="zip"):
        report.ratio([1.0], [1.0, 2.0], higher_is_better=True)


def test_the_spread_is_of_the_repetitions():
    assert report.spread([3.0, 1.0, 2.0]) == {"median": 2, "low": 1, "high": 3, "repetitions": 3}


def test_the_last_line_is_the_object_with_ratios_as_numbers(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--json"])
    assert report.run(argparse.ArgumentParser(), lambda _: measured()) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["ratio"] == {"fast": 0.375}
    assert last["ratio_spread"] == {"fast": [0.25, 0.5]}
    assert last["figures"]["slow"] == {"failed": "no answer in 300 s"}


def test_what_cannot_be_measured_is_an_error_of_one_line(capsys, monkeypatch):
    def fail(_):
        raise ThroughlineError("serving: it did not start.")

    monkeypatch.setattr("sys.argv", ["x", "--quick"])
    assert report.run(argparse.ArgumentParser(), fail) == 1
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "serving: it did not start.\n")


def test_the_table_has_a_row_per_candidate_with_spread_and_failures():
    head, _, ours, slow, fast = report.table(measured())
    assert head == "| | seconds | failed | ratio |"
    assert ours == "| throughline | 2 (1–3) |  |  |"
    assert "no answer in 300 s" in slow
    assert fast.endswith("| **0.375** (0.25–0.5) |")


def test_the_page_says_when_and_on_what_and_names_no_machine(monkeypatch):
    for function in ("platform.node", "socket.gethostname"):
        monkeypatch.setattr(function, lambda: "a-machine-with-a-name")
    facts = machine_facts()
    text = page([measured()], {"point_in_time": "About."}, facts, datetime(2024, 5, 6, tzinfo=UTC))
    assert "2024-05-06" in text
    assert {"processor", "cores", "memory", "packages"} <= facts.keys()
    assert all(facts.values())
    assert "python -m benchmarks.point_in_time --quick" in text
    for secret in ("a-machine-with-a-name", str(Path.cwd())):
        assert secret not in text
