"""Rows are appended once by their id: after repetitions, restarts, and the commits of other writers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.lakehouse import append
from throughline.lakehouse.append import DAYS_IN_MEMORY, AppendOnce

FIRST = date(2013, 1, 1)
KINDS: dict[str, Callable[[Path], AppendOnce]] = {
    "plain": lambda path: AppendOnce(path),
    "by_day": lambda path: AppendOnce(path, by_day=True),
    "same_day": lambda path: AppendOnce(path, by_day=True, same_day=True),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def rows(ids: list[int], value: int = 0) -> pl.DataFrame:
    """An id always comes with the same day."""
    return pl.DataFrame(
        {"id": [f"k{n}" for n in ids], "day": [FIRST + timedelta(days=n % 12) for n in ids], "value": value},
        schema={"id": pl.String, "day": pl.Date, "value": pl.Int64},
    )


def held(path: Path) -> dict[str, int]:
    stored = pl.read_delta(str(path))
    assert stored["id"].is_unique().all()
    return dict(stored.select("id", "value").iter_rows())


@kinds
@settings(max_examples=15)
@given(
    batches=st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=8), min_size=1, max_size=5),
    restarts=st.sets(st.integers(0, 4)),
    optimised=st.sets(st.integers(0, 4)),
)
def test_the_first_row_of_a_key_stays_and_the_new_ones_are_returned(
    kind: str, batches: list[list[int]], restarts: set[int], optimised: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, expected = Path(folder) / "t", {}
        table = KINDS[kind](path)
        for number, ids in enumerate(batches):
            if number in restarts:
                table = KINDS[kind](path)
            if number in optimised and table.version is not None:
                DeltaTable(str(path)).optimize.compact()
            new = [f"k{n}" for n in dict.fromkeys(ids) if f"k{n}" not in expected]
            assert table.append(rows(ids, number))["id"].to_list() == new
            expected |= dict.fromkeys(new, number)
            assert held(path) == expected


@kinds
def test_keys_that_another_writer_appended_meanwhile_are_left_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    table, other = KINDS[kind](path), KINDS[kind](path)
    table.append(rows([0], 1))
    write = append.write_deltalake
    interruptions = iter([lambda: other.append(rows([1, 2], 2))])

    def interrupted(*args: object, **kwargs: object) -> None:
        next(interruptions, lambda: None)()
        write(*args, **kwargs)

    monkeypatch.setattr(append, "write_deltalake", interrupted)
    assert table.append(rows([0, 1, 3], 3))["id"].to_list() == ["k3"]
    assert held(path) == {"k0": 1, "k1": 2, "k2": 2, "k3": 3}
    assert other.append(rows([3], 4)).is_empty()


@kinds
def test_an_append_without_new_keys_makes_no_version(kind: str, tmp_path: Path) -> None:
    table = KINDS[kind](tmp_path / "t")
    assert (table.version, table.rows()) == (None, None)
    table.append(rows([1, 2]))
    assert table.append(rows([2, 1])).is_empty()
    assert table.version == DeltaTable(str(tmp_path / "t")).version() == 0
    found = table.rows()
    assert found is not None
    assert found.collect().height == 2


def test_days_that_are_no_longer_in_memory_are_read_again(tmp_path: Path) -> None:
    table = KINDS["same_day"](tmp_path / "t")
    for number in range(12):
        table.append(rows([number]))
    assert table._days is not None
    assert len(table._days) == DAYS_IN_MEMORY
    assert table.append(rows(list(range(12)))).is_empty()
