"""The benchmark's right answer is right, and an answer that is nearly right is counted as wrong."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pytest

from benchmarks import join_data as data
from benchmarks import join_worker
from tests.support.asof import join_asof

SIZE = data.Size(rows=400, entities=(15, 4), ticks=(12, 40))
MISSING = object()


@pytest.fixture(scope="module")
def views() -> list[pl.DataFrame]:
    # few hours, so that ties, expiry and corrections all decide some rows
    return [data.make_view(SIZE, view) for view in SIZE.views]


@pytest.fixture(scope="module")
def spine(views) -> pl.DataFrame:
    """With rows at the very instant of a feature row, at the end of its ttl and a minute later."""
    (made,) = data.make_spine(SIZE)
    edges = views[1].head(60)
    shifts = [timedelta(0), data.ttl(1), data.ttl(1) + timedelta(minutes=1), timedelta(minutes=-1)]
    times = pl.concat([edges[data.TIME] + shift for shift in shifts])
    owners = pl.concat([edges[data.key(1)].alias("owner")] * len(shifts))
    more = pl.DataFrame({data.TIME: times, data.key(0): owners, data.key(1): owners})
    more = more.with_row_index(data.ROW, offset=made.height)
    return pl.concat([made, more.select(pl.col(name).cast(kind) for name, kind in made.schema.items())])


@pytest.fixture(scope="module")
def expected(spine, views) -> pl.DataFrame:
    return data.right_answer(spine, views)


def by_hand(row: dict[str, Any], rows: list[dict[str, Any]], view: int) -> dict[str, Any]:
    """The definition, read aloud."""
    key, ttl = data.key(view), data.ttl(view)
    may = [r for r in rows if row[key] is not None and r[key] == row[key] and r[data.TIME] <= row[data.TIME]]
    if ttl:
        may = [r for r in may if row[data.TIME] - r[data.TIME] <= ttl]
    best = max(may, key=lambda r: (r[data.TIME], r[data.CREATED]), default={})
    return {name: best.get(name) for name in data.features(view)}


def test_the_right_answer_is_that_of_the_definition(spine, views, expected):
    tables = [rows.to_dicts() for rows in views]
    for row, answer in zip(spine.to_dicts(), expected.to_dicts(), strict=True):
        for view, rows in enumerate(tables):
            wanted = by_hand(row, rows, view)
            assert {name: answer[name] for name in wanted} == wanted


def test_the_platforms_join_gives_the_right_answer(spine, views, expected):
    joined = spine
    for view, rows in enumerate(views):
        joined = join_asof(
            joined,
            rows.lazy(),
            keys=[data.key(view)],
            spine_time=data.TIME,
            row_time=data.TIME,
            columns={name: name for name in data.features(view)},
            created=data.CREATED,
            ttl=data.ttl(view),
        )
    assert data.rows_wrong(joined, expected) == 0


def test_the_data_decides_between_right_and_nearly_right(spine, views, expected):
    """Without the ttl, the order of creation or the null keys the answer is another one."""
    assert any(rows.select(data.key(v), data.TIME).is_duplicated().any() for v, rows in enumerate(views))
    forgetful = expected.filter(pl.col(data.features(1)[0]).is_null(), pl.col(data.key(1)).is_not_null())
    assert forgetful.height
    (big,) = data.make_spine(data.Size(rows=2000, entities=(100,), ticks=(1,)))
    assert big[data.key(0)].null_count()
    assert big.select(data.TIME, data.key(0)).is_duplicated().any()
    assert "e100" in big[data.key(0)]


def test_every_kind_of_wrong_answer_is_counted(expected):
    feature = data.features(0)[0]
    assert data.rows_wrong(expected.with_columns(pl.col(feature).fill_null(float("nan"))), expected) == 0
    assert data.rows_wrong(expected.sample(fraction=1, shuffle=True, seed=1), expected) == 0
    assert data.rows_wrong(expected.head(expected.height - 10), expected) == 10
    assert data.rows_wrong(pl.concat([expected, expected.head(7)]), expected) == 7
    assert data.rows_wrong(pl.concat([expected, expected.head(3).with_columns(pl.col(data.ROW) + 1000)]), expected) == 3
    changed = pl.when(pl.col(data.ROW) < 5).then(-1.0).otherwise(pl.col(feature)).alias(feature)
    assert data.rows_wrong(expected.with_columns(changed), expected) == 5


def test_a_spine_in_parts_numbers_its_rows_from_zero_to_the_last(monkeypatch):
    monkeypatch.setattr(data, "PART_ROWS", 30)
    parts = list(data.make_spine(data.Size(rows=70, entities=(5,), ticks=(4,))))
    assert [part.height for part in parts] == [30, 30, 10]
    assert pl.concat(parts)[data.ROW].to_list() == list(range(70))
    assert not parts[0][data.TIME].equals(parts[1][data.TIME])


def test_the_written_tables_are_joined_and_checked_as_the_benchmark_does(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PART_ROWS", 30)
    sizes = [data.Size(rows, (5, 6, 7), (4, 50, 3)) for rows in (70, 40)]
    data.write(tmp_path, sizes, checked=[70])
    assert data.versions(tmp_path) == {"spine_70": 2, "spine_40": 1, "view_0": 0, "view_1": 0, "view_2": 0}
    for name in ("throughline", "polars_in_memory"):
        table = pa.concat_tables(join_worker.CANDIDATES[name](tmp_path, 70)())
        answer = tmp_path / f"{name}.arrow"
        pa.feather.write_feather(table, str(answer))
        assert data.check(tmp_path, 70, answer) == 0
    pa.feather.write_feather(table.slice(1), str(answer))
    assert data.check(tmp_path, 70, answer) == 1
    streamed = join_worker.CANDIDATES["throughline"](tmp_path, 40)()
    assert sum(batch.num_rows for batch in streamed) == 40
