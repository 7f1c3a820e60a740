"""Cached rows are those of the version that is read, whatever was read before, and memory is bounded."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, replace_all, replace_days, scan
from throughline.lineage.pinned import PinnedTables

TABLE, FIRST = "u/raw/t", date(2013, 1, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(4)]


def rows(days: list[date], value: int, **more: int) -> pl.DataFrame:
    return pl.DataFrame([{"day": day, "value": value, **more} for day in days])


@pytest.fixture
def versions(settings: Settings) -> list[TableReference]:
    """Four days of zeros, then the second of ones, then the last with another column."""
    path = settings.lakehouse / TABLE
    replace_days(path, rows(DAYS, 0), DAYS[0], DAYS[-1])
    replace_days(path, rows(DAYS[1:2], 1), DAYS[1], DAYS[1])
    return [TableReference(TABLE, version) for version in range(current_version(path) + 1)]


def values(found: pl.DataFrame) -> list[int]:
    return found.sort("day")["value"].to_list()


def test_each_version_gives_its_own_rows_in_any_order_of_reads(
    settings: Settings, versions: list[TableReference]
) -> None:
    tables = PinnedTables(settings)
    for _ in range(2):
        for pinned in (versions[1], versions[0]):
            assert values(tables.rows(pinned)) == values(scan(settings.lakehouse / TABLE, pinned.version).collect())
            assert values(tables.rows(pinned, DAYS[1], DAYS[1])) == [pinned.version]
    assert tables.days(versions[0]) == DAYS
    assert tables.rows(versions[0], DAYS[-1] + timedelta(days=1)).schema == {"day": pl.Date, "value": pl.Int64}


def test_days_that_two_versions_share_are_read_once(
    settings: Settings, versions: list[TableReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, read = PinnedTables(settings), []
    collect = PinnedTables._collect

    def counted(self: PinnedTables, *arguments: Any) -> pl.DataFrame:
        read.append(collect(self, *arguments))
        return read[-1]

    monkeypatch.setattr(PinnedTables, "_collect", counted)
    for pinned in versions:
        tables.rows(pinned)
    assert [found.height for found in read] == [4, 1]


def test_memory_is_bounded_and_all_rows_are_returned(settings: Settings, versions: list[TableReference]) -> None:
    tables = PinnedTables(settings, bytes_kept=1)
    for pinned in versions:
        for day in DAYS:
            assert tables.rows(pinned, day, day).height == 1
            assert len(tables._rows) == 1
        assert tables.rows(pinned).height == 4


def test_days_of_unlike_columns_are_put_together(settings: Settings) -> None:
    path = settings.lakehouse / TABLE
    replace_days(path, rows(DAYS[:2], 0), DAYS[0], DAYS[1])
    tables = PinnedTables(settings)
    tables.rows(TableReference(TABLE, 0), DAYS[0], DAYS[0])
    replace_days(path, rows(DAYS[1:2], 0, more=7), DAYS[1], DAYS[1], new_columns=True)
    found = tables.rows(TableReference(TABLE, 1)).sort("day")
    assert found["more"].to_list() == [None, 7]


def test_a_version_vacuumed_while_it_is_open_is_an_error(settings: Settings, versions: list[TableReference]) -> None:
    tables = PinnedTables(settings)
    tables.rows(versions[0], DAYS[0], DAYS[0])
    DeltaTable(str(settings.lakehouse / TABLE)).vacuum(
        retention_hours=0, enforce_retention_duration=False, dry_run=False
    )
    with pytest.raises(ThroughlineError, match="cannot be read: nothing pinned it"):
        tables.rows(versions[0], DAYS[1], DAYS[1])
    assert tables.rows(versions[1]).height == 4


def test_maintenance_keeps_what_a_version_was_made_from_and_a_write_does_not(settings: Settings) -> None:
    path, source = settings.lakehouse / TABLE, TableReference("u/raw/s", 3)
    replace_all(path, pl.DataFrame({"value": [1]}))
    note = CommitProperties(custom_metadata={"inputs": json.dumps([str(source)])})
    write_deltalake(str(path), pl.DataFrame({"value": [2]}).to_arrow(), mode="append", commit_properties=note)
    DeltaTable(str(path)).optimize.compact()
    tables = PinnedTables(settings)
    nothing, written, compacted = (TableReference(TABLE, version) for version in range(3))
    assert (tables.made_from(compacted), tables.content(compacted)) == ([source], written)
    assert (tables.made_from(nothing), tables.content(nothing)) == (None, nothing)
    pl.DataFrame({"value": [2]}).write_delta(str(path), mode="overwrite")
    unknown = TableReference(TABLE, 3)
    assert tables.made_from(unknown) is None, "a newer version than was seen is looked for"
