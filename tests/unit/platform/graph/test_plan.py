"""A run does what changed and everything that depends on it, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from throughline.graph.client import AssetState
from throughline.graph.plan import plan_run

FIRST, UNTIL = date(2013, 1, 1), date(2013, 1, 6)
DAYS = [(FIRST + timedelta(days=n)).isoformat() for n in range(5)]


def asset(name: str, *upstream: str, status: str = "FRESH", days: list[str] | None = None) -> AssetState:
    return AssetState(
        key=("u", name),
        status=status,  # type: ignore[arg-type]
        upstream=frozenset(("u", above) for above in upstream),
        group="g",
        partitions=None if days is None else frozenset(days),
    )


def planned(*states: AssetState) -> tuple[list[str], tuple[date, date] | None]:
    plan = plan_run(states, FIRST, UNTIL)
    return [key[-1] for key in plan.assets], plan.days


def test_nothing_changed_is_nothing_to_do() -> None:
    plan = plan_run([asset("raw", days=DAYS), asset("model", "raw")], FIRST, UNTIL)
    assert not plan
    assert plan.days is None


def test_in_a_new_home_everything_is_planned_for_all_days() -> None:
    states = asset("raw", days=[], status="MISSING"), asset("planes", status="MISSING"), asset("model", "raw")
    assert planned(*states) == (["model", "planes", "raw"], (FIRST, UNTIL - timedelta(days=1)))


def test_only_missing_days_are_planned() -> None:
    assert planned(asset("raw", days=DAYS[:3]), asset("model", "raw"), asset("other")) == (
        ["model", "raw"],
        (date(2013, 1, 4), date(2013, 1, 5)),
    )


def test_an_experiment_is_never_planned_whatever_changed() -> None:
    features = asset("features", status="STALE")
    experiment = replace(asset("experiment", "features", status="MISSING"), group="experiments")
    assert planned(features, experiment, asset("model", "features"))[0] == ["features", "model"]


def test_a_gap_is_closed_by_the_range_around_it() -> None:
    assert planned(asset("raw", days=[DAYS[0], DAYS[2], DAYS[4]]))[1] == (date(2013, 1, 2), date(2013, 1, 4))


def test_a_day_that_is_not_over_is_not_planned() -> None:
    assert planned(asset("raw", days=DAYS)) == ([], None)
    assert plan_run([asset("raw", days=[])], FIRST, FIRST).assets == []


def test_days_beyond_the_range_are_not_planned() -> None:
    assert planned(asset("raw", days=[*DAYS, "2013-02-01"])) == ([], None)


def test_a_stale_daily_table_is_made_again_for_all_its_days() -> None:
    assert planned(asset("raw", days=DAYS, status="STALE"), asset("model", "raw")) == (
        ["model", "raw"],
        (FIRST, UNTIL - timedelta(days=1)),
    )


def test_a_stale_step_is_done_again_with_all_below_it_and_nothing_above() -> None:
    states = [
        asset("raw", days=DAYS),
        asset("dataset", "raw", status="STALE"),
        asset("model", "dataset"),
        asset("endpoint", "model"),
        asset("online", "raw"),
    ]
    assert planned(*states) == (["dataset", "endpoint", "model"], None)


@st.composite
def graphs(draw: st.DrawFn) -> list[AssetState]:
    """Acyclic graphs: an asset depends on earlier ones only; shuffled, because the webserver promises no order."""
    states = []
    for n in range(draw(st.integers(1, 9))):
        upstream = draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set()
        days = draw(st.none() | st.sets(st.sampled_from(DAYS)).map(list))
        status = draw(st.sampled_from(["FRESH", "STALE", "MISSING"]))
        states.append(asset(str(n), *map(str, sorted(upstream)), status=status, days=days))
    return draw(st.permutations(states))


@given(graphs())
def test_a_plan_is_closed_downwards_and_has_a_reason_for_each_asset(states: list[AssetState]) -> None:
    plan = plan_run(states, FIRST, UNTIL)
    chosen = set(plan.assets)
    assert plan.assets == sorted(chosen)

    def changed(state: AssetState) -> bool:
        if state.partitions is None:
            return state.status != "FRESH"
        return state.status == "STALE" or not set(DAYS) <= state.partitions

    for state in states:
        above = bool(state.upstream & chosen)
        assert (state.key in chosen) == (changed(state) or above)
    missing = [
        day
        for state in states
        if state.partitions is not None
        for day in DAYS
        if state.status == "STALE" or day not in state.partitions
    ]
    assert (plan.days is None) == (not missing)
    if plan.days:
        assert [day.isoformat() for day in plan.days] == [min(missing), max(missing)]


def thread(**statuses: tuple[str, str]) -> list[AssetState]:
    """A small thread through the rooms; statuses by name as (status, cause)."""
    rooms = {
        "raw": ("raw", ()),
        "ticks": ("features", ("raw",)),
        "dataset": ("training", ("ticks",)),
        "model": ("training", ("dataset",)),
        "gate": ("evaluation", ("model",)),
        "endpoint": ("deployment", ("gate", "ticks")),
        "outcomes": ("monitoring", ("endpoint", "ticks")),
    }
    return [
        AssetState(
            key=("u", name),
            status=statuses.get(name, ("FRESH", ""))[0],  # type: ignore[arg-type]
            upstream=frozenset(("u", above) for above in upstream),
            group=room,
            causes=frozenset(filter(None, [statuses.get(name, ("FRESH", ""))[1]])),
            partitions=frozenset(DAYS) if name == "raw" else None,
        )
        for name, (room, upstream) in rooms.items()
    ]


def test_newer_data_by_itself_trains_no_model() -> None:
    states = thread(dataset=("STALE", "DATA"), endpoint=("STALE", "DATA"))
    assert planned(*states) == ([], None)


def test_newer_features_reach_monitoring_but_no_candidate() -> None:
    assert planned(*thread(ticks=("STALE", "DATA"))) == (["outcomes", "ticks"], None)


def test_changed_feature_code_makes_a_new_candidate() -> None:
    everything_after = ["dataset", "endpoint", "gate", "model", "outcomes", "ticks"]
    assert planned(*thread(ticks=("STALE", "CODE"))) == (everything_after, None)


def test_a_new_day_makes_features_but_no_candidate() -> None:
    states = [
        state if state.partitions is None else replace(state, partitions=frozenset(DAYS[:-1])) for state in thread()
    ]
    assert planned(*states) == (["outcomes", "raw", "ticks"], (date(2013, 1, 5), date(2013, 1, 5)))


def test_a_training_that_never_ended_is_planned_again() -> None:
    states = thread(model=("MISSING", ""), gate=("MISSING", ""), endpoint=("MISSING", ""), outcomes=("MISSING", ""))
    assert planned(*states) == (["endpoint", "gate", "model", "outcomes"], None)


def test_features_that_a_failed_run_did_not_make_are_planned_though_dagster_reports_them_fresh() -> None:
    plan = plan_run(thread(), FIRST, UNTIL, behind=frozenset({"features"}))
    assert [key[-1] for key in plan.assets] == ["outcomes", "ticks"]
    assert plan.days is None
