"""A table is read at the version that was named, and a write of some days touches those days only."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.errors import ThroughlineError
from throughline.lakehouse.table import current_version, pin, read, replace_all, replace_days
from throughline.records import TableVersion
from throughline.settings import Settings

FIRST = date(2013, 1, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(5)]


def rows(days: list[date], value: int = 0, per_day: int = 2) -> pl.DataFrame:
    return pl.DataFrame(
        [{"day": day, "id": n, "value": value} for day in days for n in range(per_day)],
        schema={"day": pl.Date, "id": pl.Int64, "value": pl.Int64},
    )


def content(path: Path) -> dict[date, set[int]]:
    """Values per day, and a check that no row is doubled."""
    frame = pl.read_delta(str(path), version=current_version(path))
    assert not frame.select("day", "id").is_duplicated().any()
    return {day: set(part["value"]) for (day,), part in frame.group_by("day")}


@settings(max_examples=12, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.sets(st.sampled_from(DAYS))).map(
            lambda t: (min(t[0], t[1]), max(t[0], t[1]), t[2])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_after_any_writes_each_day_holds_what_was_last_written_for_it(
    writes: list[tuple[int, int, set[date]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, expected = Path(folder) / "t", {}
        for number, (first, last, present) in enumerate(writes):
            days = [day for day in DAYS[first : last + 1] if day in present]
            for _ in range(2):  # a retry changes nothing
                replace_days(path, rows(days, number), DAYS[first], DAYS[last])
            for day in DAYS[first : last + 1]:
                expected.pop(day, None)
            expected |= {day: {number} for day in days}
            assert content(path) == expected


@pytest.mark.parametrize("stray", [DAYS[0], DAYS[4], None])
def test_a_row_outside_the_range_is_refused_and_nothing_is_written(tmp_path: Path, stray: date | None) -> None:
    path = tmp_path / "t"
    bad = pl.concat([rows([DAYS[2]]), rows([DAYS[1]]).with_columns(pl.lit(stray).cast(pl.Date).alias("day"))])
    with pytest.raises(ThroughlineError, match=r"2 rows for t lie outside 2013-01-02 to 2013-01-04: nothing written"):
        replace_days(path, bad, DAYS[1], DAYS[3])
    assert current_version(path) is None
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    with pytest.raises(ThroughlineError, match="nothing written"):
        replace_days(path, bad, DAYS[1], DAYS[3])
    assert current_version(path) == 0
    assert content(path) == {day: {0} for day in DAYS}


def test_a_range_is_one_commit_on_a_table_partitioned_by_day(tmp_path: Path) -> None:
    assert replace_days(tmp_path / "t", rows(DAYS), DAYS[0], DAYS[4]) == 0
    assert replace_days(tmp_path / "t", rows(DAYS[1:3], 1), DAYS[1], DAYS[2]) == 1
    assert DeltaTable(str(tmp_path / "t")).metadata().partition_columns == ["day"]


def test_changed_columns_are_taken_when_all_days_are_brought_anew(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    changed = rows(DAYS).with_columns(pl.col("value") + 0.5, at=pl.lit(datetime(2013, 1, 1, tzinfo=UTC)))
    with pytest.raises(ThroughlineError, match=r"columns of t changed and 2 rows lie outside .*one range"):
        replace_days(path, changed.filter(pl.col("day") > DAYS[0]), DAYS[1], DAYS[4])
    assert current_version(path) == 0
    replace_days(path, changed, DAYS[0], DAYS[4])
    assert DeltaTable(str(path)).metadata().partition_columns == ["day"]
    now = pl.read_delta(str(path), version=1)
    assert now.sort("day", "id").equals(changed.select(now.columns))
    # the columns in another order, or in a finer unit than Delta has, are the same columns
    finer = changed.select(pl.col("at").cast(pl.Datetime("ns", "UTC")), "value", "id", "day")
    replace_days(path, finer.head(2), DAYS[0], DAYS[0])
    assert content(path).keys() == set(DAYS)


def test_a_pinned_read_sees_its_own_version_whatever_was_written_since(tmp_path: Path) -> None:
    home = Settings(home=tmp_path)
    path = home.table_path("u", "raw", "t")
    replace_days(path, rows(DAYS, 0), DAYS[0], DAYS[4])
    pinned = pin(home, "u/raw/t")
    before = read(home, pinned)  # lazy: looked at only after the next write
    replace_all(path, rows([DAYS[0]], 1))
    assert str(pinned) == "u/raw/t@0"
    for seen in (before, read(home, pinned)):
        assert seen.collect().height == 10
        assert seen.select(pl.col("value").max()).collect().item() == 0
    assert read(home, pin(home, "u/raw/t")).collect().height == 2


def test_a_table_or_version_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    home = Settings(home=tmp_path)
    assert current_version(tmp_path / "nowhere") is None
    assert current_version(tmp_path) is None
    with pytest.raises(ThroughlineError, match=r"u/raw/t does not exist .*materialise it first"):
        pin(home, "u/raw/t")
    replace_all(home.table_path("u", "raw", "t"), rows(DAYS))
    for pinned in ("u/raw/t", 7), ("u/raw/other", 0):
        with pytest.raises(ThroughlineError, match=rf"{pinned[0]}@{pinned[1]} cannot be read") as caught:
            read(home, TableVersion(table=pinned[0], version=pinned[1]))
        assert "\n" not in str(caught.value)


def test_a_whole_table_is_replaced_with_its_columns_and_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert replace_all(path, rows(DAYS), {"fingerprint": "abc"}) == 0
    assert replace_all(path, pl.DataFrame({"other": [1.5]}), {"fingerprint": "def"}) == 1
    assert pl.read_delta(str(path), version=1).to_dicts() == [{"other": 1.5}]
    assert [commit["fingerprint"] for commit in DeltaTable(str(path)).history()] == ["def", "abc"]


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows([]), DAYS[0], DAYS[4])
    assert pl.read_delta(str(path), version=0).schema == rows([]).schema
    replace_days(path, rows(DAYS[:1]), DAYS[0], DAYS[0])
    assert content(path) == {DAYS[0]: {0}}
