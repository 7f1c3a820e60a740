"""The window to write, by the state of the last write; and how two versions of the same rows differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from throughline.featurestore.windows import EPOCH, Changes, ViewState, compare, plan_window
from throughline.foundation.references import TableReference

LAST = datetime(2013, 4, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
OVERLAP = 2 * HOUR


def state(until: datetime = LAST, definition: str = "d", version: int = 1) -> ViewState:
    return ViewState(until=until, definition=definition, source=TableReference("u/features/v", version), pushed=None)


WANTED = state(LAST + HOUR, version=2)


def test_new_rows_and_the_overlap_are_written() -> None:
    assert plan_window(state(), WANTED, Changes(), OVERLAP).start == LAST - OVERLAP


@pytest.mark.parametrize(
    ("held", "wanted", "changes", "reason"),
    [
        (None, WANTED, None, "no state is recorded"),
        (state(definition="other"), WANTED, Changes(), "the definition changed"),
        (state(), state(LAST - HOUR), Changes(), "which is later"),
        (state(), WANTED, None, "are unknown"),
        (state(), WANTED, Changes(LAST - HOUR, lost=True), "was removed"),
        (state(), WANTED, Changes(LAST - OVERLAP - timedelta(microseconds=1)), "history changed at"),
    ],
)
def test_after_a_change_outside_the_window_the_view_is_written_whole(
    held: ViewState | None, wanted: ViewState, changes: Changes | None, reason: str
) -> None:
    window = plan_window(held, wanted, changes, OVERLAP)
    assert window.start is None
    assert window.reason.startswith("whole: ")
    assert reason in str(window)


def test_a_change_at_the_first_instant_of_the_window_is_seen() -> None:
    assert plan_window(state(), WANTED, Changes(LAST - OVERLAP), OVERLAP).start == LAST - OVERLAP


def rows(*values: tuple[str, int, float | None]) -> pl.DataFrame:
    made = [{"k": key, "t": LAST + hour * HOUR, "v": value} for key, hour, value in values]
    return pl.DataFrame(made, schema={"k": pl.String, "t": pl.Datetime("us", "UTC"), "v": pl.Float64})


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ([("a", 1, 1.0), ("b", 2, None)], [("b", 2, None), ("a", 1, 1.0)], Changes()),
        ([("a", 1, 1.0)], [("a", 1, 1.0), ("a", 3, 1.0)], Changes(LAST + 3 * HOUR)),
        ([("a", 1, 1.0)], [("a", 1, 2.0)], Changes(LAST + HOUR)),
        ([("a", 1, 1.0)], [("a", 1, None)], Changes(LAST + HOUR)),
        ([("a", 1, 1.0), ("a", 2, 2.0)], [("a", 1, 1.0)], Changes(LAST + 2 * HOUR, lost=True)),
        ([("a", 1, 1.0)], [("b", 1, 1.0)], Changes(LAST + HOUR, lost=True)),
        ([("a", 1, 1.0)] * 2, [("a", 1, 1.0)], Changes(LAST + HOUR, lost=True)),
        ([], [("a", 1, 1.0)], Changes(LAST + HOUR)),
        ([], [], Changes()),
    ],
)
def test_rows_that_differ(before: list, after: list, changes: Changes) -> None:
    assert compare(rows(*before), rows(*after), ["k"], "t", None) == changes


def test_a_row_known_at_another_time_is_another_row() -> None:
    known = pl.col("t").alias("c")
    one, other = rows(("a", 1, 1.0)).with_columns(known), rows(("a", 1, 1.0)).with_columns(known - HOUR)
    assert compare(one, other, ["k"], "t", "c").lost
    assert not compare(one, one, ["k"], "t", "c").lost


def test_changes_of_several_tables_are_those_of_each() -> None:
    early, late = Changes(LAST), Changes(LAST + HOUR, lost=True)
    assert early | late == late | early == Changes(LAST, lost=True)
    assert Changes() | early == early


def test_the_state_holds_the_newest_row_or_none() -> None:
    assert state().age == (EPOCH, EPOCH)
    assert state().with_newest((EPOCH, EPOCH)) == state()
    seen = state().with_newest((LAST, LAST + HOUR))
    assert (seen.newest, seen.known, seen.age) == (LAST, LAST + HOUR, (LAST, LAST + HOUR))
