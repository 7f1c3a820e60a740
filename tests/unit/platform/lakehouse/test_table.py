"""A table is read at the named version, and a write of some days changes those days only."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tables import rows
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.append import AppendOnce
from throughline.lakehouse.content import fingerprint_frame
from throughline.lakehouse.delta import PROPERTIES
from throughline.lakehouse.table import current_version, history, pin, read, replace_all, replace_days, scan

FIRST = date(2013, 1, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(5)]


def content(path: Path) -> dict[date, set[int]]:
    """Values per day, and a check that no row is doubled."""
    frame = pl.read_delta(str(path), version=current_version(path))
    assert not frame.select("day", "id").is_duplicated().any()
    return {day: set(part["value"]) for (day,), part in frame.group_by("day")}


@settings(max_examples=12)
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
    with pytest.raises(
        ThroughlineError, match=r"2 rows for \S+/t lie outside 2013-01-02 to 2013-01-04: nothing written"
    ):
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


def test_an_undeclared_change_of_columns_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    whole = rows(DAYS, 1)
    changes = {
        r"column extra is new \(double\)": whole.with_columns(extra=pl.lit(0.5)),
        r"column value was long and is double": whole.with_columns(pl.col("value") + 0.5),
        r"column value is missing \(was long\)": whole.drop("value"),
    }
    for difference, changed in changes.items():
        with pytest.raises(ThroughlineError, match=rf"{difference} in \S+/t, undeclared: nothing") as caught:
            replace_days(path, changed, DAYS[0], DAYS[4])
        assert "\n" not in str(caught.value)
    assert current_version(path) == 0


def test_a_declared_new_column_is_null_in_the_days_before_it(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    for day, value, extra in ((DAYS[0], 0, 0.5), (DAYS[1], 9, 1.5)):
        replace_days(path, rows([day], value).with_columns(extra=pl.lit(extra)), day, day, new_columns=True)
    seen = scan(path, 2).group_by("day").agg(pl.col("extra").unique()).sort("day").collect()
    assert seen["extra"].to_list() == [[0.5], [1.5], [None], [None], [None]]
    assert content(path) == {day: {9 if day == DAYS[1] else 0} for day in DAYS}


def test_a_declared_change_of_type_needs_all_days(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    changed = rows(DAYS).with_columns(pl.col("value") + 0.5, at=pl.lit(datetime(2013, 1, 1, tzinfo=UTC)))
    with pytest.raises(
        ThroughlineError, match=r"column value was long and is double .* 2 rows lie outside .*one range"
    ):
        replace_days(path, changed.filter(pl.col("day") > DAYS[0]), DAYS[1], DAYS[4], new_columns=True)
    assert current_version(path) == 0
    replace_days(path, changed, DAYS[0], DAYS[4], new_columns=True)
    assert DeltaTable(str(path)).metadata().partition_columns == ["day"]
    now = pl.read_delta(str(path), version=1)
    assert now.sort("day", "id").equals(changed.select(now.columns))
    # the columns in another order, or in a finer unit than Delta has, are the same columns
    finer = changed.select(pl.col("at").cast(pl.Datetime("ns", "UTC")), "value", "id", "day")
    replace_days(path, finer.head(2), DAYS[0], DAYS[0])
    assert content(path).keys() == set(DAYS)


def test_the_history_of_a_table_is_its_commits_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    replace_days(path, rows(DAYS[:2], 1), DAYS[0], DAYS[1])
    DeltaTable(str(path)).restore(0)
    assert content(path) == {day: {0} for day in DAYS}
    assert [commit.operation for commit in history(path)] == ["RESTORE", "WRITE", "WRITE"]
    assert [commit.version for commit in history(path)] == [2, 1, 0]
    assert all(datetime.now(UTC) - commit.at < timedelta(minutes=10) for commit in history(path))


def test_a_table_has_a_change_feed_and_a_log_without_automatic_cleanup(tmp_path: Path) -> None:
    replace_days(tmp_path / "a", rows(DAYS), DAYS[0], DAYS[4])
    replace_all(tmp_path / "b", rows(DAYS))
    AppendOnce(tmp_path / "c", by_day=True).append(rows(DAYS).with_columns(id=pl.format("{} {}", "day", "id")))
    for name in "abc":
        assert PROPERTIES.items() <= DeltaTable(str(tmp_path / name)).metadata().configuration.items()
        held = pl.read_delta(str(tmp_path / name)).filter(pl.col("day") == DAYS[0])
        replace_days(tmp_path / name, held, DAYS[0], DAYS[0])
        version = current_version(tmp_path / name)
        feed = pl.DataFrame(DeltaTable(str(tmp_path / name)).load_cdf(starting_version=version).read_all())
        assert sorted(feed["_change_type"]) == ["delete", "delete", "insert", "insert"]


@settings(max_examples=10)
@given(st.lists(st.sampled_from(["retry", "optimize", "vacuum", "again"]), max_size=5))
def test_the_fingerprint_of_the_rows_stays_whatever_happens_to_the_version(events: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        for day in DAYS:
            replace_days(path, rows([day]), day, day)

        def fingerprint() -> str:
            return fingerprint_frame(scan(path, current_version(path)).collect(), ["day", "id"])

        before = fingerprint()
        for event in events:
            table = DeltaTable(str(path))
            match event:
                case "retry":
                    replace_days(path, rows(DAYS[1:3]), DAYS[1], DAYS[2])
                case "optimize":
                    table.optimize.compact()
                case "vacuum":
                    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
                case "again":
                    replace_all(path, rows(DAYS).sample(fraction=1, shuffle=True, seed=1).select("value", "day", "id"))
            assert fingerprint() == before
        replace_days(path, rows(DAYS[4:], 1), DAYS[4], DAYS[4])
        assert fingerprint() != before


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


def test_a_missing_table_or_version_is_one_line(tmp_path: Path) -> None:
    home = Settings(home=tmp_path)
    assert current_version(tmp_path / "nowhere") is None
    assert current_version(tmp_path) is None
    file = tmp_path / "file"
    file.write_text("no table")
    replace_all(home.table_path("u", "raw", "t"), rows(DAYS))
    for attempt, problem in (
        (lambda: pin(home, "u/raw/other"), r"u/raw/other does not exist .*materialise it first"),
        (
            lambda: read(home, TableReference("u/raw/t", 7)),
            r"u/raw/t@7 cannot be read .*correct the version",
        ),
        (
            lambda: read(home, TableReference("u/raw/other", 0)),
            r"u/raw/other is not a Delta table: correct",
        ),
        (lambda: scan(tmp_path, 0), r"is not a Delta table: correct the address"),
        (lambda: current_version(file), r"file cannot be read .*the address"),
        (lambda: history(tmp_path / "nowhere"), r"nowhere is not a Delta table"),
    ):
        with pytest.raises(ThroughlineError, match=problem) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_reading_a_vacuumed_version_fails_at_once_and_not_when_it_is_collected(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for value in range(3):
        replace_days(path, rows(DAYS, value), DAYS[0], DAYS[4])
    DeltaTable(str(path)).vacuum(
        retention_hours=0, dry_run=False, enforce_retention_duration=False, keep_versions=[1], full=True
    )
    newest = current_version(path)
    with pytest.raises(
        ThroughlineError, match=rf"t@0 cannot be read: nothing pinned it.* newest is {newest}"
    ) as caught:
        scan(path, 0)
    assert "\n" not in str(caught.value)
    assert [scan(path, version).collect()["value"].unique().to_list() for version in (1, 2, newest)] == [[1], [2], [2]]


def test_a_whole_table_is_replaced_with_its_columns_and_the_commit_has_its_notes(tmp_path: Path) -> None:
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
