"""No value from after the prediction, always the newest from before: held against twenty lines of brute force."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.asof import join_asof
from throughline.foundation.errors import ThroughlineError

HALF_HOUR = timedelta(minutes=30)
# Around both changes of the clocks in New York: 10 March and 3 November 2013.
STARTS = [datetime(2013, 3, 10, 5, tzinfo=UTC), datetime(2013, 11, 3, 4, tzinfo=UTC)]
ZONES = ["UTC", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]
TIME = pl.Datetime("us", "UTC")
SPINE = {"k1": pl.String, "k2": pl.Int64, "at": TIME}
ROWS = {"k1": pl.String, "k2": pl.Int64, "happened": TIME, "created": TIME, "value": pl.Int64}


def oracle(
    spine: list[dict[str, Any]], rows: list[dict[str, Any]], keys: list[str], created: bool, ttl: timedelta | None
) -> list[int | None]:
    """For each spine row the value it may use, by looking at every row."""
    long_ago = datetime(1, 1, 1, tzinfo=UTC)
    values: list[int | None] = []
    for wanted in spine:
        best: tuple[Any, ...] | None = None
        for place, row in enumerate(rows):
            if any(row[key] is None or wanted[key] is None or row[key] != wanted[key] for key in keys):
                continue
            if row["happened"] is None or wanted["at"] is None or row["happened"] > wanted["at"]:
                continue
            if ttl and wanted["at"] - row["happened"] > ttl:
                continue
            rank = (row["happened"], (row["created"] or long_ago) if created else 0, place)
            if best is None or rank > best[0]:
                best = (rank, row["value"])
        values.append(best[1] if best else None)
    return values


@st.composite
def instants(draw: st.DrawFn) -> datetime:
    return draw(st.sampled_from(STARTS)) + draw(st.integers(0, 12)) * HALF_HOUR


keyed = {"k1": st.sampled_from(["a", "b", None]), "k2": st.sampled_from([1, 2, None])}
spines = st.lists(st.fixed_dictionaries({**keyed, "at": st.none() | instants()}), max_size=10)
tables = st.lists(
    st.fixed_dictionaries(
        {
            **keyed,
            "happened": st.none() | instants(),
            "created": st.none() | instants(),
            "value": st.none() | st.integers(0, 99),
        }
    ),
    max_size=14,
)
A = {"k1": "a", "k2": 1}


@settings(max_examples=200)
@given(
    spine=spines,
    rows=tables,
    keys=st.sampled_from([[], ["k1"], ["k2"], ["k1", "k2"]]),
    created=st.booleans(),
    ttl=st.sampled_from([None, timedelta(0), HALF_HOUR, 3 * HALF_HOUR]),
    zone=st.sampled_from(ZONES),
    unit=st.sampled_from(["us", "ns", "ms"]),
)
@example(  # exactly as old as the ttl allows
    spine=[{**A, "at": STARTS[0] + HALF_HOUR}],
    rows=[{**A, "happened": STARTS[0], "created": None, "value": 1}],
    keys=["k1"], created=False, ttl=HALF_HOUR, zone="UTC", unit="us",
)  # fmt: skip
@example(  # the later-created row stands first in the table
    spine=[{**A, "at": STARTS[0]}],
    rows=[
        {**A, "happened": STARTS[0], "created": STARTS[0] + HALF_HOUR, "value": 1},
        {**A, "happened": STARTS[0], "created": STARTS[0], "value": 2},
        {**A, "happened": STARTS[0], "created": None, "value": 3},
    ],
    keys=["k1", "k2"], created=True, ttl=None, zone="America/New_York", unit="ns",
)  # fmt: skip
def test_the_join_gives_what_looking_at_every_row_gives(
    spine: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    keys: list[str],
    created: bool,
    ttl: timedelta | None,
    zone: str,
    unit: Any,
) -> None:
    left = (
        pl.DataFrame(spine, schema=SPINE)
        .with_columns(pl.col("at").dt.convert_time_zone(zone).dt.cast_time_unit(unit))
        .with_row_index("place")
    )
    joined = join_asof(
        left,
        pl.DataFrame(rows, schema=ROWS).lazy(),
        keys=keys,
        spine_time="at",
        row_time="happened",
        columns={"value": "feature"},
        created="created" if created else None,
        ttl=ttl,
    )
    assert joined.drop("feature").equals(left)
    assert joined.schema == {**left.schema, "feature": pl.Int64}
    assert joined["feature"].to_list() == oracle(spine, rows, keys, created, ttl)


def rows_of(*values: tuple[datetime, int]) -> pl.LazyFrame:
    return pl.LazyFrame([{"k": "a", "happened": at, "value": v} for at, v in values], orient="row").with_columns(
        pl.col("happened").cast(TIME)
    )


def joined_with(spine: pl.DataFrame, rows: pl.LazyFrame, **more: Any) -> pl.DataFrame:
    options = {"keys": ["k"], "spine_time": "at", "row_time": "happened", "columns": {"value": "value"}, **more}
    return join_asof(spine, rows, **options)


def test_an_hour_that_the_clock_shows_twice_is_two_hours() -> None:
    """1:30 in New York on 3 November is 5:30 and 6:30 UTC: a row of the second must not serve the first."""
    zone = ZoneInfo("America/New_York")
    first, second = (datetime(2013, 11, 3, 1, 30, tzinfo=zone, fold=fold) for fold in (0, 1))
    rows = rows_of((first.astimezone(UTC), 1), (second.astimezone(UTC), 2))
    spine = pl.DataFrame({"k": ["a", "a"], "at": [first.astimezone(UTC), second.astimezone(UTC)]}).with_columns(
        pl.col("at").dt.convert_time_zone("America/New_York")
    )
    assert spine["at"].dt.hour().to_list() == [1, 1]
    assert joined_with(spine, rows)["value"].to_list() == [1, 2]


def test_a_null_value_that_is_newer_is_not_replaced_by_an_older_one() -> None:
    rows = rows_of((STARTS[0], 1), (STARTS[0] + HALF_HOUR, None))  # type: ignore[arg-type]
    spine = pl.DataFrame({"k": ["a"], "at": [STARTS[0] + HALF_HOUR]})
    assert joined_with(spine, rows)["value"].to_list() == [None]


def test_no_rows_and_no_spine_are_no_error() -> None:
    spine = pl.DataFrame({"k": ["a"], "at": [STARTS[0]]})
    rows = rows_of((STARTS[0], 1))
    assert joined_with(spine, rows.head(0))["value"].to_list() == [None]
    assert joined_with(spine.clear(), rows).schema == joined_with(spine, rows).schema
    assert joined_with(spine.clear(), rows).height == 0


@pytest.mark.parametrize(
    ("key", "held"),
    [(pl.Series([None, None]), pl.String), (pl.Series([1, None]), pl.Int32), (pl.Series([1.0, None]), pl.Int64)],
)
def test_keys_match_by_value_whatever_type_the_caller_has(key: pl.Series, held: Any) -> None:
    """A spine whose aircraft are all unknown has a key of no type at all; pandas widens integers."""
    spine = pl.DataFrame({"k": key, "at": [STARTS[0], STARTS[0]]})
    rows = rows_of((STARTS[0], 7)).with_columns(pl.lit("1").cast(held).alias("k"))
    joined = joined_with(spine, rows)
    assert joined["value"].to_list() == [7 if key[0] else None, None]
    assert joined["k"].dtype == key.dtype


def test_a_name_that_the_spine_already_has_is_refused() -> None:
    spine = pl.DataFrame({"k": ["a"], "at": [STARTS[0]], "value": [9]})
    with pytest.raises(ThroughlineError, match="already has value"):
        joined_with(spine, rows_of((STARTS[0], 1)))


def test_several_columns_come_from_the_same_row_under_their_new_names() -> None:
    rows = rows_of((STARTS[0], 1), (STARTS[0] + HALF_HOUR, 2))
    spine = pl.DataFrame({"k": ["a"], "at": [STARTS[0] + HALF_HOUR]})
    joined = joined_with(spine, rows, columns={"value": "v", "happened": "seen"})
    assert joined.drop("at").to_dicts() == [{"k": "a", "v": 2, "seen": STARTS[0] + HALF_HOUR}]


def test_many_rows_are_joined_as_few_are() -> None:
    """Sorting and joining large frames takes other paths than a dozen rows do."""
    count = 40_000
    rows = pl.LazyFrame({"n": pl.int_range(count, eager=True)}).select(
        k=pl.format("{}", pl.col("n") % 37),
        happened=pl.lit(STARTS[0]).cast(TIME) + pl.duration(minutes=pl.col("n") * 7919 % 5000),
        created=pl.lit(STARTS[0]).cast(TIME) + pl.duration(minutes=pl.col("n") * 104729 % 911),
        value=pl.col("n"),
    )
    spine = pl.DataFrame({"n": pl.int_range(200, eager=True)}).select(
        k=pl.format("{}", pl.col("n") % 41),
        at=pl.lit(STARTS[0]).cast(TIME) + pl.duration(minutes=pl.col("n") * 31 % 6000),
    )
    joined = joined_with(spine, rows, created="created", ttl=timedelta(days=2))
    held = rows.collect()
    for wanted, value in zip(spine.to_dicts(), joined["value"], strict=True):
        eligible = held.filter(
            pl.col("k") == wanted["k"],
            pl.col("happened").is_between(wanted["at"] - timedelta(days=2), wanted["at"]),
        ).sort("happened", "created", "value")
        assert value == (eligible["value"][-1] if eligible.height else None)
