"""A request is parsed into typed rows, or refused with the field at fault."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.usecase import get_usecase
from throughline.usecase.requests import (
    MAX_INSTANCES,
    BadRequest,
    example_instance,
    parse_columns,
    parse_instances,
    request_frame,
    row_key,
    row_keys,
)

INSTANTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)).map(datetime.isoformat)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=9)
INSTANCES = st.fixed_dictionaries(
    dict.fromkeys(("origin", "carrier", "dest"), TEXTS)
    | {"tailnum": st.none() | TEXTS, "flight": st.integers(-(2**63), 2**63 - 1)}
    | {"scheduled_departure": INSTANTS, "scheduled_arrival": INSTANTS}
)


@pytest.fixture(scope="module")
def usecase():
    return get_usecase("flight_delay")


@pytest.fixture
def instance(usecase):
    return example_instance(usecase)


def test_the_declared_example_parses_to_typed_utc_columns(usecase, instance):
    frame = parse_instances(usecase, [instance])
    assert frame.schema == {
        "origin": pl.String,
        "carrier": pl.String,
        "dest": pl.String,
        "tailnum": pl.String,
        "flight": pl.Int64,
        "scheduled_departure": pl.Datetime("us", "UTC"),
        "scheduled_arrival": pl.Datetime("us", "UTC"),
    }
    assert frame["scheduled_departure"][0] == datetime(2013, 4, 1, 13, tzinfo=UTC)
    assert frame["flight"][0] == 1018


@pytest.mark.parametrize("text", ["ゲート\u3000七", "क्\u200dष", "a\tb", "\u00a0", "é", "🛫"])
def test_every_text_that_a_file_may_hold_may_be_asked_for(usecase, instance, text):
    assert parse_instances(usecase, [instance | {"origin": text}])["origin"].to_list() == [text]


@given(st.lists(INSTANCES, min_size=1, max_size=4))
def test_a_row_has_the_same_key_in_a_request_and_in_a_table(usecase, made):
    columns = parse_columns(usecase, made)
    keys = row_keys(usecase, request_frame(usecase, columns)).to_list()
    assert [row_key(usecase, columns, row) for row in range(len(made))] == keys


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_nullable_field_may_be_null_or_empty(usecase, instance, nothing):
    assert parse_instances(usecase, [instance | {"tailnum": nothing}])["tailnum"].to_list() == [None]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("origin", None, "null"),
        ("origin", "", "empty"),
        ("origin", 7, "string"),
        ("origin", "J" * 300, "300"),
        ("origin", "\ud800", "surrogate"),
        ("origin", ["JFK"], "array"),
        ("flight", "1018", "integer"),
        ("flight", 1018.5, "integer"),
        ("flight", True, "boolean"),
        ("flight", 2**63, "64 bits"),
        ("flight", None, "null"),
        ("scheduled_departure", "tomorrow", "ISO 8601"),
        ("scheduled_departure", "2013-04-01T09:00:00", "time zone"),
        ("scheduled_departure", "2013-04-01", "time zone"),
        ("scheduled_departure", "0001-01-01T00:00:00+14:00", "years"),
        ("scheduled_departure", 1364821200, "string"),
        ("scheduled_departure", "2" * 300, "long"),
    ],
)
def test_a_bad_value_is_refused_by_name(usecase, instance, field, value, problem):
    with pytest.raises(BadRequest) as refused:
        parse_instances(usecase, [instance, instance | {field: value}])
    where, reason = str(refused.value).split(": ", 1)
    assert where == f"instances[1].{field}"
    assert problem in reason
    assert "\n" not in str(refused.value)


def test_every_field_is_demanded_and_no_other(usecase, instance):
    for field in instance:
        with pytest.raises(BadRequest, match=rf"instances\[0\]\.{field}: is missing"):
            parse_instances(usecase, [{k: v for k, v in instance.items() if k != field}])
    with pytest.raises(BadRequest, match=r"instances\[0\]\.'tail_num'"):
        parse_instances(usecase, [instance | {"tail_num": "N1"}])


def test_the_number_of_instances_is_bounded(usecase, instance):
    with pytest.raises(BadRequest, match="empty"):
        parse_instances(usecase, [])
    with pytest.raises(BadRequest, match="at most 1000"):
        parse_instances(usecase, [instance] * (MAX_INSTANCES + 1))
    assert parse_instances(usecase, [instance] * MAX_INSTANCES).height == MAX_INSTANCES
    with pytest.raises(BadRequest, match=r"instances\[0\]"):
        parse_instances(usecase, ["JFK"])


def test_a_row_key_is_the_same_whatever_zone_the_caller_wrote(usecase, instance):
    frame = parse_instances(usecase, [instance, instance | {"scheduled_departure": "2013-04-01T13:00:00Z"}])
    assert row_keys(usecase, frame).to_list() == ["2013-04-01T13:00:00Z|B6|1018|JFK"] * 2
