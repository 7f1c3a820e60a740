"""A table is read at the version that was named, and a write of some days touches those days only."""

from __future__ import annotations

import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import fingerprint_frame
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.delta import PROPERTIES
from throughline.lakehouse.rules import Rules
from throughline.lakehouse.table import (
    current_version,
    history,
    merge,
    pin,
    read,
    replace_all,
    replace_days,
    restore,
    scan,
)

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
    brought = {
        r"column extra is new \(double\)": whole.with_columns(extra=pl.lit(0.5)),
        r"column value was long and is double": whole.with_columns(pl.col("value") + 0.5),
        r"column value is missing \(was long\)": whole.drop("value"),
    }
    for told, changed in brought.items():
        for write in (
            lambda rows: replace_days(path, rows, DAYS[0], DAYS[4]),
            lambda rows: replace_all(path, rows, rules=Rules(columns=["other"])),
            lambda rows: merge(path, rows, ["day", "id"], "id"),
        ):
            with pytest.raises(ThroughlineError, match=rf"{told} in \S+/t, and nobody declared it: nothing") as caught:
                write(changed)
            assert "\n" not in str(caught.value)
    assert current_version(path) == 0


def test_a_declared_new_column_is_null_where_it_was_not_brought(tmp_path: Path) -> None:
    path, declared = tmp_path / "t", Rules(columns=["extra"])
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    replace_days(path, rows(DAYS[:1]).with_columns(extra=pl.lit(0.5)), DAYS[0], DAYS[0], declared)
    merge(path, rows(DAYS[1:2], 9).with_columns(extra=pl.lit(1.5)), ["day", "id"], "value", declared)
    seen = scan(path, 2).group_by("day").agg(pl.col("extra").unique()).sort("day").collect()
    assert seen["extra"].to_list() == [[0.5], [1.5], [None], [None], [None]]
    assert content(path) == {day: {9 if day == DAYS[1] else 0} for day in DAYS}


def test_a_declared_change_of_type_needs_all_days(tmp_path: Path) -> None:
    path, declared = tmp_path / "t", Rules(columns=["value", "at"])
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    changed = rows(DAYS).with_columns(pl.col("value") + 0.5, at=pl.lit(datetime(2013, 1, 1, tzinfo=UTC)))
    with pytest.raises(
        ThroughlineError, match=r"column value was long and is double .* 2 rows lie outside .*one range"
    ):
        replace_days(path, changed.filter(pl.col("day") > DAYS[0]), DAYS[1], DAYS[4], declared)
    with pytest.raises(ThroughlineError, match="a merge only adds columns"):
        merge(path, changed, ["day", "id"], "at", declared)
    assert current_version(path) == 0
    replace_days(path, changed, DAYS[0], DAYS[4], declared)
    assert DeltaTable(str(path)).metadata().partition_columns == ["day"]
    now = pl.read_delta(str(path), version=1)
    assert now.sort("day", "id").equals(changed.select(now.columns))
    # the columns in another order, or in a finer unit than Delta has, are the same columns
    finer = changed.select(pl.col("at").cast(pl.Datetime("ns", "UTC")), "value", "id", "day")
    replace_days(path, finer.head(2), DAYS[0], DAYS[0])
    assert content(path).keys() == set(DAYS)


RULES = Rules(required=["id"], checks={"positive": "value >= 0"})


@pytest.mark.parametrize("bad", [{"id": None}, {"value": -1}, {"value": None}])
def test_a_violating_write_is_one_line_and_changes_nothing_whoever_writes(tmp_path: Path, bad: dict) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4], RULES)
    before, held = current_version(path), content(path)
    violating = (
        rows(DAYS[:1], 5)
        .with_columns(pl.col("id") + 10)
        .with_columns(pl.lit(value, pl.Int64).alias(name) for name, value in bad.items())
    )
    key = "value" if "id" in bad else "id"
    for write in (
        lambda: replace_days(path, violating, DAYS[0], DAYS[0], RULES),
        lambda: replace_days(path, violating, DAYS[0], DAYS[0]),  # the table knows its rules
        lambda: replace_all(path, violating),
        lambda: merge(path, violating, [key], "day"),
    ):
        with pytest.raises(ThroughlineError, match=r"Rows for \S+/t break .*id IS NOT NULL; value >= 0.*nothing") as e:
            write()
        assert "\n" not in str(e.value)
    with pytest.raises(DeltaError):  # not only through this module
        write_deltalake(str(path), violating.to_arrow(), mode="append")
    assert (current_version(path), content(path)) == (before, held)


def test_rules_follow_the_declaration_and_are_not_put_on_rows_that_break_them(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS, -1), DAYS[0], DAYS[4])
    with pytest.raises(ThroughlineError, match=r"Rows for .*id IS NOT NULL; value >= 0.*nothing written"):
        replace_days(path, rows(DAYS[:1]), DAYS[0], DAYS[0], RULES)
    assert content(path) == {day: {-1} for day in DAYS}
    looser = Rules(required=["id"], checks={"positive": "value >= -1"})
    for rules in (looser, looser):
        replace_days(path, rows(DAYS[:1], 1), DAYS[0], DAYS[0], rules)
    with pytest.raises(ThroughlineError, match="value >= -1"):
        replace_days(path, rows(DAYS[:1], -2), DAYS[0], DAYS[0])
    replace_days(path, rows(DAYS[:1], -2), DAYS[0], DAYS[0], Rules())  # taken back
    assert content(path)[DAYS[0]] == {-2}


delivered = st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 0, 1, 2]))  # key, known, value


@settings(max_examples=25)
@given(st.lists(st.lists(delivered, min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_merged_in_any_order_and_any_number_of_times_the_newest_row_of_a_key_stands(
    deliveries: list[list[tuple[int, int, int | None]]], random: Random
) -> None:
    def frame(delivery: list[tuple[int, int, int | None]]) -> pl.DataFrame:
        columns = {"id": pl.Int64, "known": pl.Int64, "value": pl.Int64}
        made = pl.DataFrame(delivery, columns, orient="row")
        day = pl.lit(FIRST) + pl.duration(days=pl.col("known"))
        return made.with_columns(day=day.cast(pl.Date), run=pl.lit(str(random.random())))

    expected: dict[int, tuple[int, int]] = {}
    for key, known, value in (row for delivery in deliveries for row in delivery):
        # among those known at the same time the greatest value, of which null is the least
        expected[key] = max(expected.get(key, (-1, -1)), (known, -1 if value is None else value))
    for _ in range(2):
        random.shuffle(deliveries)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t"
            for delivery in [*deliveries, *deliveries[:2]]:
                merge(path, frame(delivery), ["id"], "known", provenance=["run"])
            version = current_version(path)
            for delivery in deliveries:
                assert merge(path, frame(delivery), ["id"], "known", provenance=["run"]) == version
            got = pl.read_delta(str(path), version=version)
            assert got.height == len(expected)
            seen = got.select("id", "known", pl.col("value").fill_null(-1))
            assert {key: (known, value) for key, known, value in seen.iter_rows()} == expected
            assert (got["day"] == got.select(pl.lit(FIRST) + pl.duration(days="known")).to_series()).all()


def test_a_merge_touches_only_what_differs_and_refuses_a_row_without_key(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    files = set(DeltaTable(str(path)).file_uris())
    merge(path, rows(DAYS[2:3], 1), ["day", "id"], "value")
    assert {file for file in files - set(DeltaTable(str(path)).file_uris()) if "2013-01-03" not in file} == set()
    assert content(path) == {day: {int(day == DAYS[2])} for day in DAYS}
    with pytest.raises(ThroughlineError, match="lack a value of id: nothing written"):
        merge(path, rows(DAYS).with_columns(id=pl.lit(None, pl.Int64)), ["id"], "value")
    assert current_version(path) == 1


def test_keys_that_are_texts_are_merged_also_where_a_column_is_called_alike(tmp_path: Path) -> None:
    held = pl.DataFrame({"id": ["a", "value", "z"], "value": [1, 1, 1]})
    merge(tmp_path / "t", held, ["id"], "value")
    merge(tmp_path / "t", held.filter(pl.col("id") == "value").with_columns(value=pl.lit(2, pl.Int64)), ["id"], "value")
    assert dict(scan(tmp_path / "t", 1).collect().iter_rows()) == {"a": 1, "value": 2, "z": 1}


def test_a_restored_version_is_the_newest_and_the_history_tells(tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, rows(DAYS), DAYS[0], DAYS[4])
    replace_days(path, rows(DAYS[:2], 1), DAYS[0], DAYS[1])
    assert restore(path, 0) == 2
    assert content(path) == {day: {0} for day in DAYS}
    assert [commit.operation for commit in history(path)] == ["RESTORE", "WRITE", "WRITE"]
    assert [commit.version for commit in history(path)] == [2, 1, 0]
    assert all(datetime.now(UTC) - commit.at < timedelta(minutes=10) for commit in history(path))
    with pytest.raises(ThroughlineError, match="t@7 cannot be read"):
        restore(path, 7)


def test_a_table_has_a_change_feed_and_a_log_that_nothing_cleans_by_itself(tmp_path: Path) -> None:
    replace_days(tmp_path / "a", rows(DAYS), DAYS[0], DAYS[4])
    replace_days(tmp_path / "b", rows(DAYS), DAYS[0], DAYS[4], RULES)
    replace_all(tmp_path / "c", rows(DAYS))
    merge(tmp_path / "d", rows(DAYS), ["day", "id"], "value")
    for name in "abcd":
        assert PROPERTIES.items() <= DeltaTable(str(tmp_path / name)).metadata().configuration.items()
        replace_days(tmp_path / name, rows(DAYS[:1], 3), DAYS[0], DAYS[0])
        version = current_version(tmp_path / name)
        feed = pl.DataFrame(DeltaTable(str(tmp_path / name)).load_cdf(starting_version=version).read_all())
        assert sorted(feed["_change_type"]) == ["delete", "delete", "insert", "insert"]


@settings(max_examples=10)
@given(st.lists(st.sampled_from(["retry", "optimize", "vacuum", "restore", "again", "merge"]), max_size=5))
def test_identity_is_that_of_content_whatever_happens_to_the_address(events: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        for day in DAYS:
            replace_days(path, rows([day]), day, day)

        def identity() -> str:
            return fingerprint_frame(scan(path, current_version(path)).collect(), ["day", "id"])

        before = identity()
        for event in events:
            table = DeltaTable(str(path))
            match event:
                case "retry":
                    replace_days(path, rows(DAYS[1:3]), DAYS[1], DAYS[2])
                case "optimize":
                    table.optimize.compact()
                case "vacuum":
                    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
                case "restore":
                    restore(path, table.version())
                case "again":
                    replace_all(path, rows(DAYS).sample(fraction=1, shuffle=True, seed=1).select("value", "day", "id"))
                case "merge":
                    merge(path, rows(DAYS), ["day", "id"], "value")
            assert identity() == before
        replace_days(path, rows(DAYS[4:], 1), DAYS[4], DAYS[4])
        assert identity() != before


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
    file = tmp_path / "file"
    file.write_text("no table")
    replace_all(home.table_path("u", "raw", "t"), rows(DAYS))
    for attempt, told in (
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
        with pytest.raises(ThroughlineError, match=told) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


def test_a_vacuumed_version_is_told_when_it_is_asked_for_and_not_when_it_is_collected(tmp_path: Path) -> None:
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
    with pytest.raises(ThroughlineError, match="vacuumed"):
        restore(path, 0)
    assert [scan(path, version).collect()["value"].unique().to_list() for version in (1, 2, newest)] == [[1], [2], [2]]


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
