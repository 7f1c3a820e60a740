"""Months follow each other without gap or overlap, and the table has what was measured."""

from __future__ import annotations

from datetime import date

from benchmarks.walk_forward import MEAN, months, table


def test_months_are_whole_ones_that_end_in_time():
    assert list(months(date(2013, 11, 1), date(2014, 2, 1))) == [
        (date(2013, 11, 1), date(2013, 12, 1)),
        (date(2013, 12, 1), date(2014, 1, 1)),
        (date(2014, 1, 1), date(2014, 2, 1)),
    ]
    assert list(months(date(2013, 11, 1), date(2013, 11, 30))) == []


def test_the_table_has_a_line_per_month_and_one_for_the_mean():
    figures = {"auc": 0.75, "log_loss": 0.5}
    text = table({"one": {"2013-04": figures, MEAN: figures}, "other": {"2013-04": figures, MEAN: figures}})
    assert text.splitlines() == [
        "| month | one | other |",
        "|---|---|---|",
        "| 2013-04 | 0.7500 / 0.5000 | 0.7500 / 0.5000 |",
        "| mean | 0.7500 / 0.5000 | 0.7500 / 0.5000 |",
    ]
