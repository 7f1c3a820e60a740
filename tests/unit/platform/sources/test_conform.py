"""Texts are converted to the declared types, or one line names the value; no instant becomes earlier."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from throughline.foundation.errors import ThroughlineError
from throughline.sources.conform import as_declared, empty
from throughline.sources.push import _in_utc
from throughline.usecase import Expectations
from throughline.usecase.feeds import FilesFeed

KNOWN = "2024-01-01T00:00:00Z"
BERLIN = ZoneInfo("Europe/Berlin")


def conform(values: list[Any] | pl.Series, declared: str, zone: str | None = None) -> list[Any]:
    """The values of a column after they were read as a type."""
    rows = pl.DataFrame({"it": values}).with_columns(event_time=pl.lit(KNOWN), available_at=pl.lit(KNOWN))
    expects = Expectations.model_validate({"columns": {"it": {"type": declared, "nulls": 1}}})
    feed = FilesFeed(files="x.csv", available_at="available_at", timezone=zone)
    return as_declared(rows, feed, expects, "x.csv")["it"].to_list()


@pytest.mark.parametrize(
    ("values", "declared", "read"),
    [
        (["1", " 2 ", None, "-3"], "integer", [1, 2, None, -3]),
        ([1.0, 2.0], "integer", [1, 2]),
        ([Decimal("7"), None], "integer", [7, None]),
        (pl.Series([1, 2], dtype=pl.Int8), "integer", [1, 2]),
        (["1.5", "2", "-1e3"], "number", [1.5, 2.0, -1000.0]),
        ([1, 2], "number", [1.0, 2.0]),
        ([Decimal("1.25")], "number", [1.25]),
        (["true", "F", "1", "0", None], "boolean", [True, False, True, False, None]),
        ([1, 0], "boolean", [True, False]),
        (["", "a"], "string", ["", "a"]),
        ([5, None], "string", ["5", None]),
        ([None, None], "integer", [None, None]),
        (pl.Series([None, None], dtype=pl.Date), "number", [None, None]),
        ([date(2024, 7, 1)], "timestamp", [datetime(2024, 6, 30, 22, tzinfo=UTC)]),
        (["2024-07-01"], "timestamp", [datetime(2024, 6, 30, 22, tzinfo=UTC)]),
        (["2024-07-01 09:30"], "timestamp", [datetime(2024, 7, 1, 7, 30, tzinfo=UTC)]),
        (["2024-07-01T09:30:00.123456789Z"], "timestamp", [datetime(2024, 7, 1, 9, 30, 0, 123456, tzinfo=UTC)]),
        (["2024-07-01 09:30:00+00"], "timestamp", [datetime(2024, 7, 1, 9, 30, tzinfo=UTC)]),
        (["2024-07-01T09:30:00-0430"], "timestamp", [datetime(2024, 7, 1, 14, tzinfo=UTC)]),
    ],
)
def test_a_value_is_read_as_its_declared_type(values: Any, declared: str, read: list[Any]) -> None:
    assert conform(values, declared, "Europe/Berlin") == read


@pytest.mark.parametrize(
    ("values", "declared", "row"),
    [
        (["1", "1.5"], "integer", 2),
        ([1.0, 1.5], "integer", 2),
        (["99999999999999999999"], "integer", 1),
        (["1", "1,5"], "number", 2),
        ([True], "number", 1),
        (["yes"], "boolean", 1),
        ([2], "boolean", 1),
        (["01.07.2024"], "timestamp", 1),
        (["2024-07-01T09:30:00Z", "2024-13-01T00:00:00Z"], "timestamp", 2),
        ([1719820800], "timestamp", 1),
        ([[1, 2]], "string", 1),
        (["2024-03-31T02:30:00"], "timestamp", 1),  # the clocks go forward over it
    ],
)
def test_a_value_that_is_not_of_its_type_is_one_line_with_its_row(values: Any, declared: str, row: int) -> None:
    with pytest.raises(ThroughlineError, match=rf"^x\.csv, row {row}: it .* is not of type {declared}") as caught:
        conform(values, declared, "Europe/Berlin")
    assert "\n" not in str(caught.value)


@given(
    stamps=st.lists(
        st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1)).flatmap(
            lambda at: st.integers(-14 * 60, 14 * 60).map(
                lambda minutes: at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
            )
        ),
        min_size=1,
    )
)
def test_a_timestamp_with_an_offset_is_that_instant_whatever_the_zone(stamps: list[datetime]) -> None:
    texts = [stamp.isoformat() for stamp in stamps]
    assert conform(texts, "timestamp", "Asia/Kolkata") == stamps
    assert conform(texts, "timestamp", None) == stamps


@given(naive=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)))
@example(naive=datetime(2024, 10, 27, 2, 30))  # there twice
@example(naive=datetime(2024, 3, 31, 2, 30))  # not there
def test_a_timestamp_without_an_offset_is_of_its_zone_and_the_later_of_two(naive: datetime) -> None:
    """The same rule for what is pushed (`push.py`), held against the standard library here and there."""
    later = naive.replace(tzinfo=BERLIN, fold=1).astimezone(UTC)
    if later.astimezone(BERLIN).replace(tzinfo=None) != naive:
        with pytest.raises(ThroughlineError):
            conform([naive.isoformat()], "timestamp", "Europe/Berlin")
        with pytest.raises(ValueError, match="does not exist"):
            _in_utc("Europe/Berlin")(naive)
        return
    assert conform([naive.isoformat()], "timestamp", "Europe/Berlin") == [later]
    assert conform([naive], "timestamp", "Europe/Berlin") == [later]
    assert _in_utc("Europe/Berlin")(naive) == later
    assert later >= naive.replace(tzinfo=BERLIN, fold=0).astimezone(UTC)


@pytest.mark.parametrize("value", ["2024-07-01T09:30:00", datetime(2024, 7, 1), date(2024, 7, 1)])
def test_a_timestamp_without_an_offset_needs_a_declared_zone(value: Any) -> None:
    with pytest.raises(ThroughlineError, match=r"it 2024-07-01.* has no time zone: .*`timezone`"):
        conform([value], "timestamp")


def test_declared_columns_come_first_then_others_then_event_and_knowledge_time() -> None:
    expects = Expectations.model_validate({"columns": {"b": {"type": "integer"}, "at": {"type": "timestamp"}}})
    feed = FilesFeed(files="x.csv", event_time="at", available_at="seen")
    rows = pl.DataFrame({"seen": [KNOWN], "new": ["x"], "at": [KNOWN], "b": ["1"]})
    read = as_declared(rows, feed, expects, "x.csv")
    assert read.columns == ["b", "at", "new", "event_time", "available_at"]
    assert empty(expects).columns == ["b", "at", "event_time", "available_at"]
    # a declared column that is missing: the day's verdict reports it
    assert as_declared(rows.drop("b"), feed, expects, "x.csv").columns == ["at", "new", "event_time", "available_at"]


@pytest.mark.parametrize("gone", ["at", "seen"])
def test_without_the_columns_of_times_nothing_is_read(gone: str) -> None:
    feed = FilesFeed(files="x.csv", event_time="at", available_at="seen")
    with pytest.raises(ThroughlineError, match=f"^x.csv has no column {gone} .*`from`"):
        as_declared(pl.DataFrame({"at": [KNOWN], "seen": [KNOWN]}).drop(gone), feed, None, "x.csv")
