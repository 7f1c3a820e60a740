"""Every column of the SQL is traced to the raw columns that decide its value, or the reason is given in one line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.featurestore.lineage import column_lineage, raw_columns
from throughline.foundation.errors import ThroughlineError
from throughline.usecase import get_usecase

TABLES = {
    "departures": {"tailnum": "string", "available_at": "timestamp", "delay": "double", "day": "date"},
    "planes": {"tailnum": "string", "seats": "bigint", "built": "bigint"},
}


def lineage(sql: str, tables: dict[str, dict[str, str]] = TABLES) -> dict[str, list[str]]:
    return {column: list(map(str, sources)) for column, sources in column_lineage(sql, "u_raw", tables).items()}


def test_a_window_is_traced_to_its_value_its_key_and_its_order() -> None:
    sql = """
        with events as (
          select tailnum, available_at, delay from `u_raw`.`departures` VERSION AS OF 7 where day > '2013'
        ),
        per_hour as (
          select tailnum, (unix_micros(available_at) div 3600000000 + 1) as hour, count(*) as n, sum(delay) as delay
          from events group by 1, 2
        ),
        marks as (select tailnum, hour from per_hour union select tailnum, hour + 6 from per_hour),
        summed as (
          select tailnum, hour, coalesce(sum(delay) over (
            partition by tailnum order by hour range between 5 preceding and current row), 0) as delay_6h,
            coalesce(sum(n) over (
            partition by tailnum order by hour range between 5 preceding and current row), 0) as n_6h
          from marks left join per_hour using (tailnum, hour)
        )
        select tailnum, timestamp_seconds(hour * 3600) as at, delay_6h / nullif(n_6h, 0) as mean_delay, n_6h, 'x' as run
        from summed
    """
    assert lineage(sql) == {
        "tailnum": ["departures.tailnum"],
        "at": ["departures.available_at"],
        "mean_delay": ["departures.available_at", "departures.delay", "departures.tailnum"],
        "n_6h": ["departures.available_at", "departures.tailnum"],
        "run": [],
    }


def test_a_joined_key_comes_from_both_sides_and_a_filter_from_none() -> None:
    sql = """
        select tailnum, p.seats, 2013 - p.built as age from u_raw.departures VERSION AS OF 1
        left join u_raw.planes VERSION AS OF 2 as p using (tailnum) where delay > 0
    """
    assert lineage(sql) == {
        "tailnum": ["departures.tailnum", "planes.tailnum"],
        "seats": ["planes.seats"],
        "age": ["planes.built"],
    }


def test_a_star_is_followed_where_the_columns_are_declared() -> None:
    sql = """
        with newest as (
          select * except (day) from u_raw.departures VERSION AS OF 1
          qualify row_number() over (partition by tailnum order by available_at desc) = 1
        )
        select delay as newest_delay from newest
    """
    assert lineage(sql) == {"newest_delay": ["departures.delay"]}
    with pytest.raises(ThroughlineError, match="selects \\* from a table of undeclared columns"):
        lineage(sql, {})


def test_both_sides_of_a_union_count() -> None:
    sql = """
        select cast(null as int) as label, available_at from u_raw.departures VERSION AS OF 1
        union all select seats, cast(built as timestamp) from u_raw.planes VERSION AS OF 1
    """
    assert lineage(sql) == {"label": ["planes.seats"], "available_at": ["departures.available_at", "planes.built"]}


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("select nope from u_raw.planes", "nope"),
        ("selec tailnum from", "Unexpected token|Invalid"),
        ("create table t as select 1 as a", "no SELECT"),
    ],
)
def test_sql_that_cannot_be_traced_is_one_line(sql: str, why: str) -> None:
    with pytest.raises(ThroughlineError, match=why) as refusal:
        lineage(sql)
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


@settings(max_examples=40)
@given(st.lists(st.permutations(["tailnum", "available_at", "delay"]), min_size=1, max_size=5))
def test_a_column_renamed_any_number_of_times_is_traced_to_its_source(renames: list[list[str]]) -> None:
    """Each step renames the columns to each other's names; the oracle follows the permutations by hand."""
    began = {name: name for name in ("tailnum", "available_at", "delay")}
    steps, source = [], "u_raw.departures VERSION AS OF 3"
    for n, names in enumerate(renames):
        renamed = dict(zip(names, sorted(names), strict=True))
        steps.append(f"s{n} as (select {', '.join(f'{old} as {new}' for old, new in renamed.items())} from {source})")
        began = {new: began[old] for old, new in renamed.items()}
        source = f"s{n}"
    found = lineage(f"with {', '.join(steps)} select * from {source}")
    assert found == {name: [f"departures.{first}"] for name, first in began.items()}


def test_declared_columns_are_known_with_those_the_platform_adds() -> None:
    columns = raw_columns(get_usecase("flight_delay"))
    assert columns["weather"]["wind_speed"] == "double"
    assert columns["weather"]["day"] == "date"
    assert "day" not in columns["planes"], "a register has no days"
