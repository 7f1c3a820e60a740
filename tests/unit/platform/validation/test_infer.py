"""A draft of expectations accepts the rows it was made from, with a margin, and lists suspicious values."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from throughline.usecase import Expectations, SourceTable
from throughline.validation.infer import draft, suspicions
from throughline.validation.judge import judge

FIRST = date(2013, 1, 1)
INSTANT = pl.Datetime("us", "UTC")
SCHEMA = {
    "id": pl.Int64,
    "n": pl.Float64,
    "whole": pl.Int64,
    "text": pl.String,
    "flag": pl.Boolean,
    "event_time": INSTANT,
    "available_at": INSTANT,
    "day": pl.Date,
}


def frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows (day number, n, whole, text, flag), made whole with an id and instants."""
    complete = [
        (
            number,
            n,
            whole,
            text,
            flag,
            datetime(2013, 1, 1, tzinfo=UTC),
            datetime(2013, 1, 1, tzinfo=UTC),
            FIRST + timedelta(day),
        )
        for number, (day, n, whole, text, flag) in enumerate(rows)
    ]
    return pl.DataFrame(complete, schema=SCHEMA, orient="row")


rows_of_any_kind = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.none() | st.floats(-1e9, 1e9),
        st.none() | st.integers(-(2**40), 2**40),
        st.none() | st.text(alphabet="ABZ09az-_é \n", max_size=4),
        st.none() | st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@given(rows=rows_of_any_kind)
def test_a_draft_accepts_the_rows_it_was_made_from(rows: list[tuple[Any, ...]]) -> None:
    learnt = frame(rows)
    pasted = yaml.safe_load(yaml.safe_dump({"expects": draft(learnt)}))
    table = SourceTable(key=["id"], description="d", **pasted)
    days = learnt["day"].unique().sort().to_list()
    judged = judge(learnt, table, days, first=days[0])
    assert judged.good.height == learnt.height, judged.days


def test_bounds_lie_beyond_the_values_seen_and_do_not_cross_zero() -> None:
    columns = draft(frame([(0, n / 10, n, "A", True) for n in range(101)]))["columns"]
    assert columns["n"] == {"type": "number", "at_least": 0, "at_most": 11}
    assert columns["whole"] == {"type": "integer", "at_least": 0, "at_most": 110}
    below = draft(frame([(0, -float(n), -n, "A", True) for n in range(101)]))["columns"]
    assert below["n"] == {"type": "number", "at_least": -110, "at_most": 0}


def test_few_texts_are_listed_and_many_are_described() -> None:
    few = draft(frame([(0, 1.0, 1, "EWR" if n % 2 else "JFK", True) for n in range(100)]))["columns"]["text"]
    assert few == {"type": "string", "values": ["EWR", "JFK"]}
    many = draft(frame([(0, 1.0, 1, f"N{n:04}"[: 4 + n % 2], True) for n in range(100)]))["columns"]["text"]
    assert many == {"type": "string", "pattern": "[A-Z0-9]{4,5}"}
    free = draft(frame([(0, 1.0, 1, f"any thing {n}!", True) for n in range(100)]))["columns"]["text"]
    assert free == {"type": "string"}


def test_nulls_are_allowed_where_they_were_seen_and_nowhere_else() -> None:
    rows = [(day, None if day == 1 and n < 5 else 1.0, 1, "A", True) for day in range(3) for n in range(10)]
    columns = draft(frame(rows))["columns"]
    assert columns["n"]["nulls"] == 0.76  # half of one day's, and half as many again
    assert "nulls" not in columns["whole"]


def test_the_volume_is_drafted_without_the_first_day_which_holds_earlier_deliveries() -> None:
    rows = [(0, 1.0, 1, "A", True)] * 500 + [(day, 1.0, 1, "A", True) for day in (1, 2) for _ in range(100 * day)]
    assert draft(frame(rows))["rows"] == {"at_least": 50, "at_most": 400}
    static = draft(frame(rows).drop("day"))["rows"]
    assert static == {"at_least": 400, "at_most": 1600}


def test_what_the_platform_or_the_contract_adds_is_not_expected_again() -> None:
    expects = draft(frame([(0, 1.0, 1, "A", True)]).with_columns(ingestion_run_id=pl.lit("r")))
    assert list(expects["columns"]) == ["id", "n", "whole", "text", "flag"]
    assert Expectations.model_validate(expects).drift is not None


def test_a_value_far_beyond_all_others_is_suspicious() -> None:
    winds = [(0, float(n % 40), 1, "A", True) for n in range(5000)]
    assert suspicions(frame(winds)) == []
    (doubt,) = suspicions(frame([*winds, (0, 1048.36, 1, "A", True)]))
    assert "n: the largest value is 1048.36" in doubt


def test_no_rows_and_no_declarable_column_make_no_draft() -> None:
    with pytest.raises(ValueError, match="no rows"):
        draft(frame([]))
    with pytest.raises(ValueError, match="columns"):
        draft(pl.DataFrame({"event_time": [datetime(2013, 1, 1, tzinfo=UTC)]}))
