"""The strategies: which revisions serve at each stage, when a stage ends, and what no sequence of events can break."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rollouts import START, a_rollout, serving, verdict
from throughline.rollout.state import POINTS, Rollout
from throughline.rollout.strategy import (
    decided,
    desired,
    expired,
    finished,
    lacking,
    paused,
    resumed,
    share_of,
    stage_of,
    stages,
    stepped,
)
from throughline.rollout.target import Capabilities

PLANS: dict[str, dict[str, Any]] = {
    "canary": {"strategy": "canary", "steps": [0.1, 0.5], "dwell": "10s", "deadline": "2m"},
    "shadow_canary": {"strategy": "shadow_canary", "steps": [0.1, 0.5], "dwell": "10s", "shadow_share": 0.5},
    "blue_green": {"strategy": "blue_green", "dwell": "10s"},
    "ab": {"strategy": "ab", "share": 0.3, "duration": "60s", "sticky": "customer"},
}
ADVANCE, HOLD = verdict("advance"), verdict("hold")
ROLL_BACK, CANNOT_SAY = verdict("roll_back", "errors: too many"), verdict("cannot_say")


def at(seconds: float):
    return START + timedelta(seconds=seconds)


def looked(rollout: Rollout, found=ADVANCE, seconds: float = 0) -> Rollout:
    """A look at which the target serves what is desired."""
    return stepped(rollout, found, serving(desired(rollout)), at(seconds))


def roles(rollout: Rollout) -> list[tuple[str, float]]:
    """Role and weight of version 1, then of version 2, as far as they serve."""
    return [(one.role, one.weight) for one in sorted(desired(rollout).revisions, key=lambda one: one.version)]


def walked(plan: dict[str, Any], found=ADVANCE) -> tuple[Rollout, list[list[tuple[str, float]]]]:
    """A look every 5 s until there is an outcome, and what served meanwhile, without repetitions."""
    rollout, seen, seconds = a_rollout(**plan), [], 0
    while rollout.outcome is None:
        if not seen or seen[-1] != roles(rollout):
            seen.append(roles(rollout))
        rollout = looked(rollout, found, seconds)
        seconds += 5
    return rollout, seen


def test_a_canary_takes_its_shares_one_after_the_other():
    rollout, seen = walked(PLANS["canary"])
    assert seen == [[("stable", 0.9), ("canary", 0.1)], [("stable", 0.5), ("canary", 0.5)]]
    assert rollout.outcome == "promoted"
    assert [step.what for step in rollout.steps] == [
        "started: canary 10%", "advanced: canary 50%", "promoted"
    ]  # fmt: skip


def test_a_shadow_answers_nothing_before_its_steps():
    _, seen = walked(PLANS["shadow_canary"])
    assert seen[0] == [("stable", 1.0), ("shadow", 0.5)]
    assert seen[1:] == [[("stable", 0.9), ("canary", 0.1)], [("stable", 0.5), ("canary", 0.5)]]


def test_blue_and_green_are_exchanged_at_once_with_stable_kept_for_the_watch():
    rollout, seen = walked(PLANS["blue_green"])
    assert seen == [[("stable", 1.0), ("shadow", 1.0)], [("stable", 0.0), ("canary", 1.0)]]
    assert rollout.outcome == "promoted"


def test_an_ab_test_is_sticky_by_its_key_with_a_salt_of_its_own():
    revisions = desired(a_rollout(**PLANS["ab"]))
    assert revisions.sticky is not None
    assert (revisions.sticky.key, revisions.sticky.salt) == ("customer", "r1")
    assert desired(a_rollout(**PLANS["canary"])).sticky is None


@pytest.mark.parametrize(("better", "outcome"), [(True, "promoted"), (False, "rolled_back")])
def test_an_ab_test_is_decided_by_outcomes_at_its_end(better, outcome):
    rollout, _ = walked(PLANS["ab"], verdict("advance", better=better))
    assert rollout.outcome == outcome
    assert rollout.steps[-1].at == at(60)
    assert rollout.why.startswith("brier: ")


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_bad_candidate_goes_back_at_once_in_every_stage(plan):
    for stage in range(len(stages(a_rollout(**plan).plan))):
        rollout, seconds = a_rollout(**plan), 0
        while rollout.stage < stage:
            seconds += 5
            rollout = looked(rollout, ADVANCE, seconds)
        back = looked(rollout, ROLL_BACK, seconds + 1)
        assert (back.outcome, back.why) == ("rolled_back", "errors: too many")
        assert roles(back) == [("stable", 1.0)]
        assert desired(back).stable.version == 1


def test_a_stage_needs_its_dwell_time_from_when_the_target_serves_it():
    rollout = stepped(a_rollout(**PLANS["canary"]), ADVANCE, (), at(30))
    assert (rollout.stage, rollout.entered_at) == (0, None)
    rollout = looked(rollout, ADVANCE, 40)
    assert looked(rollout, ADVANCE, 49).stage == 0
    assert looked(rollout, ADVANCE, 50).stage == 1


@pytest.mark.parametrize("found", [HOLD, CANNOT_SAY], ids=["hold", "cannot say"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_cannot_be_said_at_the_deadline_goes_back(plan, found):
    rollout, _ = walked({**plan, "deadline": "2m"}, found)
    assert rollout.outcome == "rolled_back"
    assert rollout.steps[-1].at == at(120)
    assert "not shown to be good by the deadline: because" in rollout.why


def test_a_revision_that_the_target_never_serves_goes_back_at_the_deadline():
    rollout = a_rollout(**PLANS["canary"])
    assert stepped(rollout, CANNOT_SAY, (), at(119)).outcome is None
    back = stepped(rollout, CANNOT_SAY, (), at(120))
    assert back.outcome == "rolled_back"
    assert "the target does not serve canary 10% yet" in back.why
    assert expired(rollout, "no answer", at(120)).outcome == "rolled_back"


def test_a_pause_keeps_shares_and_stops_dwell_and_deadline():
    rollout = looked(a_rollout(**PLANS["canary"]), CANNOT_SAY, 0)
    waiting = paused(rollout, "ada", at(5))
    assert roles(waiting) == roles(rollout)
    waiting = looked(waiting, ADVANCE, 1000)
    assert (waiting.stage, waiting.outcome) == (0, None)
    going = resumed(waiting, "ada", at(1005))
    assert looked(going, ADVANCE, 1009).stage == 0
    assert looked(going, ADVANCE, 1010).stage == 1
    assert looked(going, CANNOT_SAY, 1119).outcome is None
    assert looked(going, CANNOT_SAY, 1120).outcome == "rolled_back"
    assert [step.what for step in going.steps[1:]] == ["paused", "resumed"]


def test_a_bad_candidate_goes_back_though_the_rollout_is_paused():
    waiting = paused(a_rollout(**PLANS["canary"]), "ada", at(5))
    assert looked(waiting, ROLL_BACK, 6).outcome == "rolled_back"


def test_repeated_pauses_resumptions_and_decisions_change_nothing():
    rollout = a_rollout(**PLANS["canary"])
    assert resumed(rollout, "ada", at(1)) == rollout
    waiting = paused(rollout, "ada", at(1))
    assert paused(waiting, "eve", at(2)) == waiting
    over = decided(rollout, "aborted", "by ada", at(3))
    for change in (
        decided(over, "promoted", "no", at(4)), paused(over, "ada", at(4)), looked(over, ROLL_BACK, 4),
        expired(over, "no", at(10_000)),
    ):  # fmt: skip
        assert change == over
    done = finished(over, at(5))
    assert finished(done, at(6)) == done
    assert finished(rollout, at(6)) == rollout


@pytest.mark.parametrize(
    ("name", "missing"),
    [("canary", "weights"), ("ab", "weights, sticky"), ("blue_green", "mirror"), ("shadow_canary", "weights, mirror")],
)
def test_what_a_plan_needs_of_a_target(name, missing):
    plan = a_rollout(**PLANS[name]).plan
    assert lacking(plan, Capabilities(weights=False, sticky=False, mirror=False)) == missing
    assert lacking(plan, Capabilities(weights=True, sticky=True, mirror=True)) is None


def test_a_long_rollout_keeps_a_bounded_trail():
    rollout = a_rollout(**PLANS["canary"])
    for seconds in range(3 * POINTS):
        rollout = looked(rollout, HOLD, seconds / 10)
    assert len(rollout.points) <= POINTS
    assert rollout.points[0].at == at(0)
    assert Rollout.model_validate_json(rollout.model_dump_json()) == rollout


# Whatever happens

events = st.one_of(
    st.tuples(
        st.just("look"),
        st.sampled_from([ADVANCE, HOLD, ROLL_BACK, CANNOT_SAY, verdict("advance", better=True)]),
        st.booleans(),
    ),
    st.tuples(st.sampled_from(["pause", "resume", "abort", "finish", "restart"])),
)


@settings(max_examples=200, deadline=None)
@given(
    plan=st.sampled_from(list(PLANS.values())),
    happened=st.lists(st.tuples(events, st.floats(0, 40)), max_size=30),
)
def test_no_sequence_of_events_breaks_a_rollout(plan, happened):
    rollout, now = a_rollout(**plan), START
    for event, seconds in happened:
        now += timedelta(seconds=seconds)
        before = rollout
        match event:
            case ("look", found, serves):
                rollout = stepped(rollout, found, serving(desired(rollout)) if serves else (), now)
            case ("pause",):
                rollout = paused(rollout, "ada", now)
            case ("resume",):
                rollout = resumed(rollout, "ada", now)
            case ("abort",):
                rollout = decided(rollout, "aborted", "by ada", now)
            case ("finish",):
                rollout = finished(rollout, now)
            case ("restart",):
                rollout = Rollout.model_validate_json(rollout.model_dump_json())
        revisions = desired(rollout)
        # RevisionSet refuses two stables and weights that do not sum to 1; stable is kept until the candidate has won
        kept = {one.version for one in revisions.revisions}
        assert (1 in kept) or rollout.outcome == "promoted"
        assert (2 in kept) or rollout.outcome in ("rolled_back", "aborted")
        assert 0 <= share_of(rollout) <= 1
        if before.outcome is None and rollout.outcome == "promoted":
            assert event[0] == "look"
            assert event[1].conclusion == "advance"
            assert before.stage + 1 == len(stages(before.plan))
        if before.outcome is not None:
            assert rollout.outcome == before.outcome
        if before.ended_at is not None:
            assert rollout == before
        assert before.stage <= rollout.stage <= before.stage + 1
        if rollout.stage != before.stage:
            assert before.entered_at is not None or event[0] == "look"
            assert before.paused_at is None
        assert stage_of(rollout) in stages(rollout.plan)
