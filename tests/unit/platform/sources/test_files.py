"""Which files are read, when their rows were known, and the errors of a folder that breaks its declaration."""

from __future__ import annotations

import gzip
import os
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support import shop
from throughline.foundation.errors import ThroughlineError
from throughline.sources.files import FileSource
from throughline.usecase import UseCase

NOW = shop.BEGAN + 30 * shop.DAY


def source(folder: Path, files: str = "*.csv", **feed: Any) -> FileSource:
    usecase = shop.declare(folder / "usecases", {"files": f"{folder}/in/{files}", "event_time": "ordered_at", **feed})
    declared = usecase.sources.tables["orders"].feed
    return FileSource(usecase, "orders", declared)


def put(folder: Path, name: str, content: pl.DataFrame | bytes, modified: datetime | None = None) -> Path:
    path = folder / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.write_csv().encode())
    if modified:
        touch(path, modified)
    return path


def touch(path: Path, modified: datetime) -> None:
    os.utime(path, (modified.timestamp(), modified.timestamp()))


def ids(read: pl.DataFrame) -> list[str]:
    return read["order_id"].to_list()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "deep/c.csv", "deep/er/d.csv"]),
        ("deep/*.csv", ["deep/c.csv"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("[b-z].csv", ["b.csv"]),
        ("a.csv", ["a.csv"]),
        ("none/*.csv", []),
    ],
)
def test_a_pattern_matches_files_by_path_and_none_that_is_still_written(
    tmp_path: Path, pattern: str, found: list[str]
) -> None:
    for name in ("b.csv", "a.csv", "deep/c.csv", "deep/er/d.csv", "a.csv.part", "_a.csv", ".b.csv", "_tmp/e.csv"):
        put(tmp_path, name, shop.rows(1))
    files = source(tmp_path, pattern).files()
    assert [file.path for file in files] == [f"{tmp_path}/in/{name}" for name in found]


def test_without_a_declared_knowledge_time_a_file_is_known_when_it_was_written(tmp_path: Path) -> None:
    early, late = shop.BEGAN + shop.HOUR, shop.BEGAN + 3 * shop.DAY
    put(tmp_path, "a.csv", shop.rows(2).drop("known_at"), late)
    put(tmp_path, "b.csv", shop.rows(4).tail(2).drop("known_at"), early)
    orders = source(tmp_path)
    assert ids(orders.read(None, NOW)) == ["o0002", "o0003", "o0000", "o0001"]
    assert orders.read(early, early + shop.HOUR)["available_at"].to_list() == [early, early]
    assert ids(orders.read(late, NOW)) == ["o0000", "o0001"]
    assert orders.read(early + timedelta(microseconds=1), late).height == 0


def test_a_late_file_with_declared_knowledge_time_belongs_to_the_old_day(tmp_path: Path) -> None:
    orders = source(tmp_path, available_at="known_at")
    put(tmp_path, "first.csv", shop.rows(10), shop.BEGAN + shop.DAY)
    day = (shop.BEGAN, shop.BEGAN + shop.DAY)
    assert ids(orders.read(*day)) == [f"o{n:04d}" for n in range(10)]
    put(tmp_path, "late.csv", shop.rows(12).tail(2), shop.BEGAN + 20 * shop.DAY)
    assert ids(orders.read(*day)) == [f"o{n:04d}" for n in range(12)]


def test_a_file_that_cannot_hold_a_window_is_not_opened(tmp_path: Path) -> None:
    """A year of files is not read again every day: a file written before a window has no rows of it."""
    orders = source(tmp_path, available_at="known_at")
    put(tmp_path, "old.csv", b"\xff\xfe no table at all", shop.BEGAN - 2 * shop.DAY)
    put(tmp_path, "new.csv", shop.rows(10), shop.BEGAN + shop.DAY)
    assert orders.read(shop.BEGAN, NOW).height == 10
    with pytest.raises(ThroughlineError, match=r"old\.csv"):
        orders.read(None, NOW)


def test_a_file_with_a_row_that_became_known_after_it_was_written_is_refused(tmp_path: Path) -> None:
    """The window of that knowledge time would not open the file; mostly the declared zone is wrong."""
    put(tmp_path, "early.csv", shop.rows(60), shop.BEGAN)
    with pytest.raises(
        ThroughlineError,
        match=r"early\.csv: written at 2024-10-24 22:00 UTC, it has a row .*correct",
    ):
        source(tmp_path, available_at="known_at").read(None, NOW)


def test_files_may_be_compressed_and_of_another_dialect(tmp_path: Path) -> None:
    content = shop.rows(3).with_columns(note=pl.lit("NA")).write_csv(separator=";").encode()
    put(tmp_path, "a.csv.gz", gzip.compress(content))
    feed = {"available_at": "known_at", "separator": ";", "null_values": ["NA"]}
    read = source(tmp_path, "*.csv.gz", **feed).read(None, NOW)
    assert read["note"].to_list() == [None] * 3
    assert read["items"].to_list() == [0, 1, 2]


def test_a_column_that_only_some_files_have_is_null_in_the_others(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", shop.rows(1).drop("note"))
    put(tmp_path, "b.csv", shop.rows(2).tail(1).with_columns(note=pl.lit("new")))
    assert source(tmp_path, available_at="known_at").read(None, NOW)["note"].to_list() == [None, "new"]


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_holds_no_rows(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "a.csv", content)
    put(tmp_path, "b.csv", shop.rows(1))
    assert source(tmp_path, available_at="known_at").read(None, NOW).height == 1


def test_a_parquet_file_needs_no_declared_columns(tmp_path: Path) -> None:
    feed = {"files": f"{tmp_path}/in/*.parquet", "event_time": "ordered_at", "available_at": "known_at"}
    declared = shop.declaration({"orders": {"key": ["order_id"], "description": "x", "from": feed}})
    usecase = UseCase.model_validate(declared)
    (tmp_path / "in").mkdir()
    shop.rows(3).write_parquet(tmp_path / "in" / "a.parquet")
    orders = FileSource(usecase, "orders", usecase.sources.tables["orders"].feed)
    assert orders.read(None, NOW).columns == [
        *("order_id", "items", "amount", "paid", "note", "event_time", "available_at")
    ]
    assert orders.read(None, shop.BEGAN).schema == orders.read(None, NOW).schema


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", b"\xff\xfe\x00\x01,\x80\n\xff,\xff", "a.csv"),
        ("a.csv", b"order_id,items\no1,1\n", "a.csv has no column ordered_at"),
        ("other.txt", b"", "No file matches"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    put(tmp_path, name, content)
    with pytest.raises(ThroughlineError, match=problem) as caught:
        source(tmp_path, available_at="known_at").read(None, NOW)
    assert "\n" not in str(caught.value)


def test_a_folder_may_be_written_as_a_uri(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", shop.rows(2))
    feed = {"files": f"file://{tmp_path}/in/*.csv", "event_time": "ordered_at", "available_at": "known_at"}
    usecase = shop.declare(tmp_path, feed)
    assert FileSource(usecase, "orders", usecase.sources.tables["orders"].feed).read(None, NOW).height == 2


def test_an_unknown_kind_of_store_is_one_line(tmp_path: Path) -> None:
    usecase = shop.declare(tmp_path, {"files": "ftp://host/*.csv", "event_time": "ordered_at"})
    with pytest.raises(ThroughlineError, match=r"ftp://host/\*\.csv cannot be read") as caught:
        FileSource(usecase, "orders", usecase.sources.tables["orders"].feed).read(None, NOW)
    assert "\n" not in str(caught.value)


def test_a_part_has_its_days_and_another_stamp_with_other_content(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", shop.rows(30), NOW)
    by_column, by_file = source(tmp_path, available_at="known_at"), source(tmp_path)
    (stamp,) = by_column.parts().values()
    assert by_column.days(str(path)) == {date(2024, 10, 25), date(2024, 10, 26)}
    by_file.parts()
    assert by_file.days(str(path)) == {date(2024, 11, 23)}  # 22:00 UTC is 23:00 in Berlin
    put(tmp_path, "a.csv", shop.rows(31), NOW + timedelta(seconds=1))
    assert list(by_column.parts().values()) != [stamp]
    # a file that cannot be read is refused by the run that ingests its day
    put(tmp_path, "a.csv", b"nothing", NOW)
    by_column.parts()
    assert by_column.days(str(path)) == {date(2024, 11, 23)}
