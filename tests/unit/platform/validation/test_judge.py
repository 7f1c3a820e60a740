"""Every delivered row is accepted or quarantined, never both; a bad day is refused as a whole, with the reason."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.foundation.errors import ThroughlineError
from throughline.usecase import Expectations, SourceTable
from throughline.validation.judge import REASONS, Judgement, judge, worst

FIRST = date(2013, 11, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(3)]
NOON = datetime(2013, 11, 1, 12, tzinfo=UTC)
INSTANT = pl.Datetime("us", "UTC")
SCHEMA = {
    "id": pl.Int64,
    "speed": pl.Float64,
    "place": pl.String,
    "event_time": INSTANT,
    "available_at": INSTANT,
    "day": pl.Date,
}
COLUMNS: dict[str, Any] = {
    "id": {"type": "integer"},
    "speed": {"type": "number", "nulls": 0.5, "at_least": 0, "at_most": 250},
    "place": {"type": "string", "pattern": "[A-Z]{3}"},
}


def table(**expects: Any) -> SourceTable:
    return SourceTable(key=["id"], description="d", expects=Expectations(**{"columns": COLUMNS, **expects}))


def row(number: int, day: date = FIRST, speed: float | None = 10.0, place: str | None = "EWR") -> dict[str, Any]:
    known = NOON + (day - FIRST)
    return {"id": number, "speed": speed, "place": place, "event_time": known, "available_at": known, "day": day}


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def results(judged: Judgement, day: date = FIRST) -> dict[str, str]:
    return {verdict.aspect: verdict.result for verdict in judged.days[day].verdicts}


values = st.one_of(st.none(), st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 10.0, 250.0, 250.1]))
places = st.sampled_from([None, "EWR", "JFK", "ewr", "EWRX", "", "EWR\n"])
deliveries = st.lists(st.builds(row, st.integers(0, 12), st.sampled_from(DAYS), values, places), max_size=40).map(
    lambda rows: frame(*rows)
)
tables = st.builds(
    table,
    max_bad_share=st.sampled_from([0.0, 0.2, 0.9]),
    max_duplicate_share=st.sampled_from([0.0, 0.3, 0.9]),
    rows=st.fixed_dictionaries({"at_least": st.integers(1, 5), "empty": st.sampled_from(["bad", "warn"])}),
)


@given(rows=deliveries, declared=tables)
def test_good_and_quarantined_rows_are_together_what_was_delivered(rows: pl.DataFrame, declared: SourceTable) -> None:
    judged = judge(rows, declared, DAYS)
    together = pl.concat([judged.good, judged.quarantined.drop(REASONS)])
    by_all = list(SCHEMA)
    assert together.sort(by_all).equals(rows.sort(by_all))
    assert (judged.quarantined[REASONS].list.len() > 0).all()


@given(rows=deliveries, declared=tables)
def test_accepted_rows_keep_every_rule_and_are_accepted_again(rows: pl.DataFrame, declared: SourceTable) -> None:
    judged = judge(rows, declared, DAYS)
    good = judged.good
    assert not good.select("day", "id").is_duplicated().any()
    assert good["speed"].drop_nulls().is_between(0, 250).all()
    assert set(good["place"]) <= {"EWR", "JFK"}
    refused = [day for day, verdict in judged.days.items() if not verdict.accepted]
    assert not good["day"].is_in(refused).any()
    assert sum(day.bad for day in judge(good, declared, DAYS).days.values()) == 0


@given(rows=deliveries, declared=tables, limit=st.floats(0, 250), share=st.floats(0, 1))
def test_stricter_expectations_never_let_in_a_day_that_laxer_ones_refuse(
    rows: pl.DataFrame, declared: SourceTable, limit: float, share: float
) -> None:
    assert declared.expects is not None
    speed = declared.expects.columns["speed"].model_copy(update={"at_most": limit})
    stricter = declared.expects.model_copy(
        update={
            "columns": {**declared.expects.columns, "speed": speed},
            "max_bad_share": declared.expects.max_bad_share * share,
            "max_duplicate_share": declared.expects.max_duplicate_share * share,
        }
    )
    before = judge(rows, declared, DAYS)
    after = judge(rows, declared.model_copy(update={"expects": stricter}), DAYS)
    for day in DAYS:
        assert after.days[day].bad >= before.days[day].bad
        assert before.days[day].accepted or not after.days[day].accepted


@given(rows=deliveries, declared=tables)
def test_a_verdict_depends_on_its_day_only(rows: pl.DataFrame, declared: SourceTable) -> None:
    """A range of days judged at once has the verdicts of its days one by one."""
    at_once = judge(rows, declared, DAYS)
    for day in DAYS:
        single = judge(rows.filter(pl.col("day") == day), declared, [day])
        assert single.days[day] == at_once.days[day]
        assert single.good.equals(at_once.good.filter(pl.col("day") == day))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(row(9, speed=1048.36), "speed: above 250", id="too high"),
        pytest.param(row(9, speed=-1.0), "speed: below 0", id="too low"),
        pytest.param(row(9, speed=float("nan")), "speed: not a finite number", id="no number"),
        pytest.param(row(9, place=None), "place: missing", id="missing"),
        pytest.param(row(9, place="EWR\n"), "place: does not match [A-Z]{3}", id="a line break"),
        pytest.param(row(1), "key: id repeats an earlier row", id="repeated key"),
    ],
)
def test_a_bad_row_has_the_rule_it_breaks_and_the_others_are_accepted(bad: dict[str, Any], reason: str) -> None:
    judged = judge(frame(*map(row, range(5)), bad), table(max_bad_share=0.5, max_duplicate_share=0.5), [FIRST])
    assert judged.quarantined[REASONS].to_list() == [[reason]]
    assert judged.good["id"].to_list() == [0, 1, 2, 3, 4]
    assert judged.days[FIRST].accepted


def test_a_row_that_breaks_several_rules_names_each_of_them() -> None:
    judged = judge(frame(row(1), row(2, speed=999.0, place="?")), table(max_bad_share=0.5), [FIRST])
    assert judged.quarantined[REASONS].to_list() == [["speed: above 250", "place: does not match [A-Z]{3}"]]


def test_a_null_where_nulls_are_allowed_is_good() -> None:
    assert judge(frame(row(1), row(2, speed=None)), table(), [FIRST]).good.height == 2


def test_of_rows_with_the_same_key_the_first_good_one_is_written() -> None:
    judged = judge(
        frame(row(1, speed=999.0), row(1, speed=2.0), row(1, speed=3.0)),
        table(max_bad_share=0.9, max_duplicate_share=0.9),
        [FIRST],
    )
    assert judged.good["speed"].to_list() == [2.0]


def test_the_same_key_on_another_day_is_another_row() -> None:
    assert judge(frame(row(1), row(1, DAYS[1])), table(), DAYS[:2]).good.height == 2


@pytest.mark.parametrize(
    ("rows", "expects", "aspect"),
    [
        pytest.param([row(n, speed=999.0 if n < 3 else 1.0) for n in range(20)], {}, "rows", id="many bad rows"),
        pytest.param([row(n, speed=None if n < 11 else 1.0) for n in range(20)], {}, "rows", id="many nulls"),
        pytest.param([row(n % 19) for n in range(20)], {}, "unique_key", id="repeated keys"),
        pytest.param([row(1)], {"rows": {"at_least": 2}}, "volume", id="too few"),
        pytest.param([row(1), row(2)], {"rows": {"at_most": 1}}, "volume", id="too many"),
        pytest.param([], {}, "volume", id="none"),
    ],
)
def test_a_bad_day_is_refused_as_a_whole_and_other_days_are_not(
    rows: list[dict[str, Any]], expects: dict[str, Any], aspect: str
) -> None:
    beside = [row(n, DAYS[1]) for n in range(2 if "rows" in expects and "at_least" in expects["rows"] else 1)]
    judged = judge(frame(*rows, *beside), table(**expects), DAYS[:2])
    assert results(judged)[aspect] == "fail"
    assert not judged.days[FIRST].accepted
    assert aspect in judged.days[FIRST].reason
    assert judged.days[DAYS[1]].accepted
    assert judged.good["day"].unique().to_list() == [DAYS[1]]
    assert judged.quarantined.height == len(rows)
    assert all(any("day refused" in reason for reason in reasons) for reasons in judged.quarantined[REASONS])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(lambda f: f.drop("speed"), "speed is missing", id="a column is missing"),
        pytest.param(lambda f: f.with_columns(new=1), "new (Int32) is not declared", id="a column is new"),
        pytest.param(lambda f: f.with_columns(pl.col("id").cast(pl.String)), "id is String instead of", id="a text"),
        pytest.param(
            lambda f: f.with_columns(pl.col("event_time").dt.replace_time_zone(None)),
            "instead of an instant in UTC",
            id="no time zone",
        ),
    ],
)
def test_a_changed_schema_is_its_own_verdict_and_refuses_the_day(change: Any, problem: str) -> None:
    judged = judge(change(frame(row(1), row(2))), table(), [FIRST])
    assert results(judged) == {"schema": "fail"}
    assert problem in judged.days[FIRST].reason
    assert judged.good.height == 0
    assert judged.quarantined.height == 2


def test_too_few_rows_of_an_unfinished_day_give_no_verdict() -> None:
    declared = table(rows={"at_least": 5})
    assert results(judge(frame(row(1)), declared, [FIRST], until=FIRST))["volume"] == "cannot_say"
    assert results(judge(frame(row(1)), declared, [FIRST], until=DAYS[1]))["volume"] == "fail"


def test_the_first_day_may_hold_more_because_it_holds_earlier_deliveries() -> None:
    declared, rows = table(rows={"at_most": 1}), frame(row(1), row(2))
    assert results(judge(rows, declared, [FIRST], first=FIRST))["volume"] == "pass"
    assert results(judge(rows, declared, [FIRST]))["volume"] == "fail"


def test_an_empty_day_can_be_declared_a_warning() -> None:
    judged = judge(frame(), table(rows={"empty": "warn"}), [FIRST])
    assert results(judged)["volume"] == "warn"
    assert judged.days[FIRST].accepted


def test_a_table_without_expectations_has_good_rows_only() -> None:
    rows = frame(row(1), row(1, place=None))
    judged = judge(rows, SourceTable(key=["id"], description="d"), [FIRST])
    assert judged.good.equals(rows)
    assert judged.days[FIRST].verdicts == ()


def test_the_worst_reasons_come_first() -> None:
    fast = [row(n, speed=999.0) for n in range(3)]
    judged = judge(frame(row(10), *fast, row(11, place=None)), table(max_bad_share=0.9), [FIRST])
    assert worst(judged.quarantined) == "speed: above 250 (3), place: missing (1)"
    assert worst(judged.quarantined, most=1) == "speed: above 250 (3)"


def test_a_pattern_that_the_engine_does_not_support_is_one_line() -> None:
    lookahead = {**COLUMNS, "place": {"type": "string", "pattern": "(?=E)EWR"}}
    with pytest.raises(ThroughlineError, match=r"cannot be used .*: correct it") as refused:
        judge(frame(row(1)), table(columns=lookahead), [FIRST])
    assert "\n" not in str(refused.value)
