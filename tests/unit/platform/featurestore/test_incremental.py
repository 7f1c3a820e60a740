"""After each build a feature table equals a build of all its days, in whatever order rows arrived."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from throughline.featurestore.incremental import Build, Origin, model_code, plan_build
from throughline.foundation.days import spans
from throughline.usecase import UseCase, get_usecase

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FIRST = date(2013, 3, 1)
START = datetime(2013, 3, 1, 5, tzinfo=UTC)  # midnight in New York; the clocks go forward on the 10th
WINDOWS = (6, 168)
Row = tuple[str, datetime, int]
Ticks = dict[tuple[str, datetime], tuple[date, tuple[int, ...]]]


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def epoch_hour(instant: datetime) -> int:
    """The hour from which on a row is known: the one that follows it."""
    return int(instant.timestamp()) // 3600 + 1


def ticks(usecase: UseCase, rows: list[Row], as_of: datetime) -> Ticks:
    """All ticks by brute force: whenever a row enters or leaves a window, the sum of each window then."""
    made: Ticks = {}
    for entity, at, _ in rows:
        for leaves in (0, *WINDOWS):
            hour = epoch_hour(at) + leaves
            instant = datetime.fromtimestamp(hour * 3600, UTC)
            if at >= as_of or instant > as_of:
                continue
            sums = tuple(
                sum(v for e, a, v in rows if e == entity and a < as_of and hour - window < epoch_hour(a) <= hour)
                for window in WINDOWS
            )
            made[entity, instant] = (max(FIRST, usecase.local_day(instant - timedelta(microseconds=1))), sums)
    return made


def raw_day(usecase: UseCase, row: Row) -> date:
    return max(FIRST, usecase.local_day(row[1]))


instants = st.one_of(
    st.integers(0, 20 * 24).map(lambda hours: START + hours * HOUR),  # on the hour, where it matters
    st.integers(0, 20 * 24 * 60).map(lambda minutes: START + minutes * HOUR / 60),
)
rows = st.lists(st.tuples(st.sampled_from("ab"), instants, st.integers(1, 9)), max_size=8, unique_by=lambda row: row[1])
steps = st.lists(
    st.tuples(rows, st.integers(0, 20 * 24).map(lambda hours: START + hours * HOUR), st.booleans()),
    min_size=1,
    max_size=5,
)


@given(steps=steps)
@settings(max_examples=300)
@example(steps=[([("a", START, 1)], START + 2 * DAY, False), ([("a", START, 2)], START + 12 * DAY, False)])
@example(steps=[([("a", START + 8 * DAY, 1)], START + 17 * DAY, False), ([], START + 17 * DAY, False)])
def test_a_table_built_in_any_steps_is_what_one_build_makes(
    steps: list[tuple[list[Row], datetime, bool]], usecase: UseCase
) -> None:
    """Each step replaces all source rows: some appear late, some go, some change; the clock may not move."""
    table: Ticks = {}
    built: Origin | None = None
    before: list[Row] = []
    for version, (now, as_of, request) in enumerate(steps):
        changed = {raw_day(usecase, row) for row in set(now) ^ set(before)}
        wanted = origin(version, as_of)
        requested = [usecase.local_day(as_of - HOUR)] if request else []
        build = plan_build(usecase, built, wanted, {"events": changed}, timedelta(hours=max(WINDOWS)), requested)
        whole = ticks(usecase, now, build.origin.as_of)
        days = set(build.days)
        if build.whole:
            table = {}
        table = {key: tick for key, tick in table.items() if tick[0] not in days}
        table |= {key: tick for key, tick in whole.items() if tick[0] in days}
        assert table == whole
        built, before = build.origin, now


def origin(version: int, as_of: datetime, code: str = "code") -> Origin:
    return Origin(pins={"events": version}, as_of=as_of, code=code, first=FIRST)


def plan(usecase: UseCase, changed: dict[str, Any], **more: Any) -> Build:
    until = START + 20 * DAY
    wanted = origin(2, more.pop("as_of", until), more.pop("code", "code"))
    return plan_build(usecase, origin(1, until), wanted, changed, timedelta(hours=24), **more)


def test_nothing_changed_builds_nothing(usecase: UseCase) -> None:
    assert plan(usecase, {"events": set()}).ranges == []


def test_a_late_row_touches_its_day_and_those_that_see_it(usecase: UseCase) -> None:
    build = plan(usecase, {"events": {date(2013, 3, 5)}})
    assert not build.whole
    assert build.ranges == [(date(2013, 3, 5), date(2013, 3, 6))]


def test_of_a_new_day_only_that_day_is_built(usecase: UseCase) -> None:
    # the clocks went forward on the 10th: midnight is an hour earlier by then
    build = plan(usecase, {"events": {date(2013, 3, 20)}}, as_of=START + 20 * DAY - HOUR)
    assert build.origin.as_of == START + 20 * DAY  # never back
    assert plan(usecase, {"events": set()}, as_of=START + 21 * DAY - HOUR).ranges == [(date(2013, 3, 21),) * 2]


@pytest.mark.parametrize("reason", [{"changed": {"events": None}}, {"changed": {"events": set()}, "code": "other"}])
def test_unknown_changes_or_another_code_build_all_days(usecase: UseCase, reason: dict[str, Any]) -> None:
    build = plan(usecase, **reason)
    assert build.whole
    assert build.ranges == [(FIRST, date(2013, 3, 21))]


def test_a_requested_day_is_built_again_and_a_future_one_is_not(usecase: UseCase) -> None:
    build = plan(usecase, {"events": set()}, requested=[date(2013, 3, 4), date(2013, 5, 1)])
    assert build.ranges == [(date(2013, 3, 4),) * 2]


@given(days=st.sets(st.integers(0, 60)))
def test_ranges_are_the_days_and_do_not_touch(days: set[int]) -> None:
    ranges = spans(FIRST + n * DAY for n in days)
    assert Build(False, ranges, origin(1, START)).days == sorted(FIRST + n * DAY for n in days)
    assert all(later[0] - earlier[1] > DAY for earlier, later in pairwise(ranges))


def test_an_origin_is_read_from_its_commit_as_it_was_written() -> None:
    written = Origin(pins={"b": 2, "a": 1}, as_of=START + HOUR / 7, code="c0de", first=FIRST)
    assert Origin.model_validate_json(written.model_dump_json()) == written


def test_the_code_of_a_model_is_its_sql_its_meta_and_every_macro_behind_it() -> None:
    def manifest(**sql: str) -> dict[str, Any]:
        text = {
            "model": "m",
            "near": "n",
            "far": "f",
            "other": "o",
            "materialization_days_spark": "d",
            "grid": "g",
        } | sql
        uses = {"near": ["macro.p.far"], "far": ["macro.dbt.builtin"]}
        macros = {
            f"macro.p.{name}": {
                "package_name": "p", "macro_sql": text[name], "depends_on": {"macros": uses.get(name, [])}
            }
            for name in ("near", "far", "other", "materialization_days_spark")
        }  # fmt: skip
        node = {
            "package_name": "p",
            "raw_code": text["model"],
            "config": {"materialized": "days", "meta": {"grid": text["grid"]}},
            "depends_on": {"macros": ["macro.p.near"]},
        }
        return {"nodes": {"model.p.m": node}, "macros": macros}

    code = model_code(manifest(), "model.p.m")
    assert code == model_code(manifest(other="changed"), "model.p.m")
    for part in ("model", "grid", "near", "far", "materialization_days_spark"):
        assert model_code(manifest(**{part: "changed"}), "model.p.m") != code
