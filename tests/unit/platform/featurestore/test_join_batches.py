"""A join in batches, of several views, or over a known span is the join: only its memory and its time differ."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from tests.support.asof import join_asof, join_many
from throughline.featurestore.asof import View, join_batches
from throughline.foundation.errors import ThroughlineError

START, MINUTE = datetime(2024, 3, 10, 5, tzinfo=UTC), timedelta(minutes=1)
TIME = pl.Datetime("us", "UTC")


def instants(most: int) -> st.SearchStrategy[datetime]:
    return st.integers(0, most).map(lambda minutes: START + minutes * MINUTE)


def frames(time: str, most: int, **more: Any) -> st.SearchStrategy[pl.DataFrame]:
    keyed = {"k": st.sampled_from(["a", "b", "c", None]), "n": st.sampled_from([1, 2, None])}
    rows = st.lists(st.fixed_dictionaries({**keyed, time: st.none() | instants(20), **more}), max_size=most)
    kinds = {"k": pl.String, "n": pl.Int32, time: TIME, "created": TIME, "value": pl.Int64}
    return rows.map(lambda made: pl.DataFrame(made, schema={n: kinds[n] for n in ("k", "n", time, *more)}))


spines = frames("at", 12)
tables = frames("happened", 14, created=st.none() | instants(20), value=st.integers(0, 99))
views = st.lists(
    st.fixed_dictionaries(
        {
            "rows": tables,
            "keys": st.sampled_from([[], ["k"], ["n"], ["k", "n"]]),
            "created": st.sampled_from([None, "created"]),
            "ttl": st.sampled_from([None, MINUTE, 7 * MINUTE]),
        }
    ),
    max_size=3,
)


def as_views(drawn: list[dict[str, Any]], unit: Any = "us", zone: str | None = "UTC") -> list[View]:
    def in_zone(rows: pl.DataFrame) -> pl.LazyFrame:
        time = pl.col("happened").dt.cast_time_unit(unit)
        return rows.lazy().with_columns(time.dt.convert_time_zone(zone) if zone else time.dt.replace_time_zone(None))

    return [
        View(**{**view, "rows": in_zone(view["rows"])}, row_time="happened", columns={"value": f"value_{number}"})
        for number, view in enumerate(drawn)
    ]


def one_by_one(spine: pl.DataFrame, drawn: list[View]) -> pl.DataFrame:
    for view in drawn:
        spine = join_asof(
            spine,
            view.rows,
            keys=view.keys,
            spine_time="at",
            row_time=view.row_time,
            columns=view.columns,
            created=view.created,
            ttl=view.ttl,
        )
    return spine


@settings(max_examples=150)
@given(spine=spines, drawn=views, size=st.integers(1, 5))
def test_any_division_into_batches_and_all_views_at_once_give_the_same(
    spine: pl.DataFrame, drawn: list[dict[str, Any]], size: int
) -> None:
    held = as_views(drawn)
    expected = one_by_one(spine, held)
    assert_frame_equal(join_many(spine, held, spine_time="at"), expected)
    batches = list(join_batches(spine.iter_slices(size), held, spine_time="at"))
    assert [batch.height for batch in batches] == [part.height for part in spine.iter_slices(size)]
    if batches:
        assert_frame_equal(pl.concat(batches), expected)


@settings(max_examples=150)
@given(
    spine=spines,
    drawn=views,
    unit=st.sampled_from(["ms", "us", "ns"]),
    zone=st.sampled_from([None, "UTC", "America/New_York"]),
)
def test_rows_that_a_known_span_leaves_out_would_not_have_been_used(
    spine: pl.DataFrame, drawn: list[dict[str, Any]], unit: Any, zone: str | None
) -> None:
    span = (spine["at"].min(), spine["at"].max())
    held = as_views(drawn, unit, zone)
    (bounded,) = join_batches([spine], held, spine_time="at", span=span)
    (unbounded,) = join_batches([spine], held, spine_time="at")
    assert_frame_equal(bounded, unbounded)


def test_files_that_hold_nothing_for_a_known_span_are_not_opened(tmp_path: Path) -> None:
    """Two of three files are gone; reading them is an error."""
    days = [START + timedelta(days=n) for n in range(3)]
    for day in days:
        row = pl.DataFrame({"k": ["a"], "happened": [day], "value": [day.day]})
        write_deltalake(str(tmp_path), row.to_arrow(), mode="append")
    for file in pl.DataFrame(DeltaTable(str(tmp_path)).get_add_actions(flatten=True)).to_dicts():
        if file["min.happened"] != days[1]:
            (tmp_path / file["path"]).unlink()
    rows = pl.scan_delta(str(tmp_path), version=2)
    spine = pl.DataFrame({"k": ["a"], "at": [days[1] + MINUTE]})
    view = View(rows=rows, keys=["k"], row_time="happened", columns={"value": "value"}, ttl=2 * MINUTE)
    assert join_many(spine, [view], spine_time="at")["value"].to_list() == [days[1].day]
    with pytest.raises((OSError, pl.exceptions.PolarsError)):
        list(join_batches([spine], [view], spine_time="at"))


def test_a_text_key_that_no_row_has_is_no_error_and_no_match() -> None:
    spine = pl.DataFrame({"k": ["a", "unknown", None, "b"], "at": [START] * 4})
    rows = pl.LazyFrame({"k": ["b", "a"], "happened": [START] * 2, "value": [2, 1]})
    joined = join_asof(spine, rows, keys=["k"], spine_time="at", row_time="happened", columns={"value": "value"})
    assert joined["value"].to_list() == [1, None, None, 2]
    assert joined["k"].to_list() == ["a", "unknown", None, "b"]


def test_two_views_must_not_give_one_name() -> None:
    spine = pl.DataFrame({"k": ["a"], "at": [START]})
    rows = pl.LazyFrame({"k": ["a"], "happened": [START], "value": [1]})
    view = View(rows=rows, keys=["k"], row_time="happened", columns={"value": "value"})
    with pytest.raises(ThroughlineError, match="already has value"):
        join_many(spine, [view, view], spine_time="at")


def test_views_are_read_once_for_all_batches() -> None:
    reads = []

    def counted(rows: pl.DataFrame) -> pl.DataFrame:
        reads.append(rows.height)
        return rows

    rows = pl.LazyFrame({"k": ["a"], "happened": [START], "value": [1]}).map_batches(counted)
    view = View(rows=rows, keys=["k"], row_time="happened", columns={"value": "value"})
    spine = pl.DataFrame({"k": ["a"] * 9, "at": [START] * 9})
    assert pl.concat(join_batches(spine.iter_slices(2), [view], spine_time="at"))["value"].to_list() == [1] * 9
    assert reads == [1]
