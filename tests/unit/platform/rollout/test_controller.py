"""The controller: a rollout ends by its evidence, whatever is slow, silent, interrupted or done meanwhile."""

from __future__ import annotations

import pytest

from tests.support.rollout_world import ADA, CANARY, NAME, World, make_world
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord
from throughline.registry.history import events
from throughline.rollout import controller, promotion, running
from throughline.rollout.state import FILE, Rollout
from throughline.rollout.target import Capabilities


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(settings, monkeypatch)


GOOD_HISTORY = ["started: canary 10%", "advanced: canary 50%", "promoted"]


def test_a_first_champion_is_served_at_once_and_the_next_one_by_a_rollout(world: World) -> None:
    assert (world.serving(), world.champions()) == ([(1, "stable", 1.0)], [f"{NAME}/1"])
    rollout = world.release(2, over=1)
    assert isinstance(rollout, Rollout)
    assert world.serving() == [(1, "stable", 1.0)]
    assert world.everywhere() == {1}


def test_without_any_traffic_a_good_version_is_promoted_on_replayed_requests(world: World) -> None:
    world.release(2, over=1)
    done = world.to_the_end()
    assert done.outcome == "promoted"
    assert world.target.history[1:] == [
        [(1, "stable", 0.9), (2, "canary", 0.1)], [(1, "stable", 0.5), (2, "canary", 0.5)], [(2, "stable", 1.0)]
    ]  # fmt: skip
    assert world.everywhere() == {2}
    assert world.champions() == [f"{NAME}/1", f"{NAME}/2"]
    assert world.steps_recorded() == GOOD_HISTORY
    assert done.evidence.replayed == done.evidence.requests > 200
    (champion,) = [event for event in events(world.settings, NAME, action="champion") if event.new == f"{NAME}/2"]
    assert champion.reason.startswith("passed; rollout canary: within tolerance: errors, latency, scores, evaluation")


def test_with_live_traffic_nothing_is_replayed(world: World) -> None:
    world.target.live = 1000
    world.release(2, over=1)
    done = world.to_the_end()
    assert (done.outcome, done.evidence.replayed) == ("promoted", 0)
    assert world.target.replayed == 0


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        pytest.param({"errors": 0.3}, "errors", id="errors"),
        pytest.param({"errors": 1.0}, "errors", id="NaN"),
        pytest.param({"seconds": 0.05}, "latency", id="slow"),
        pytest.param({"shift": 0.3}, "scores", id="shifted scores"),
    ],
)
@pytest.mark.parametrize("live", [0, 500], ids=["replayed", "live"])
def test_a_bad_version_is_rolled_back_with_the_reason(world: World, fault: dict, metric: str, live: int) -> None:
    world.target.does[2], world.target.live = fault, live
    world.release(2, over=1)
    done = world.to_the_end()
    assert done.outcome == "rolled_back"
    assert metric in {reason.partition(":")[0] for reason in done.why.split("; ")}
    assert world.serving() == [(1, "stable", 1.0)]
    assert (world.everywhere(), world.champions()) == ({1}, [f"{NAME}/1"])
    assert world.steps_recorded()[-1] == "rolled back"


def test_a_version_that_cannot_be_loaded_is_rolled_back_before_it_has_traffic(world: World) -> None:
    world.target.refuses[2] = "it was killed: out of memory"
    world.release(2, over=1)
    done = world.tick()
    assert (done.outcome, done.why) == (
        "rolled_back", f"it cannot be served: {NAME}/2: it was killed: out of memory"
    )  # fmt: skip
    assert world.serving() == [(1, "stable", 1.0)]


def test_a_version_that_is_never_counted_goes_back_at_the_deadline(world: World) -> None:
    """As one that hangs: it answers nothing, so nothing is known of it."""
    world.target.replay = lambda *_: None
    world.release(2, over=1)
    done = world.to_the_end()
    assert done.outcome == "rolled_back"
    assert "by the deadline: 0 of 100 requests of this step were seen" in done.why
    assert (done.ended_at - done.started_at).total_seconds() > 300


def test_without_the_scores_of_its_evaluation_a_version_is_judged_by_the_other_metrics(world: World) -> None:
    world.scores = ((), ())
    world.release(2, over=1)
    done = world.to_the_end()
    assert (done.outcome, done.why) == ("promoted", "within tolerance: errors, latency, scores")


def test_an_evaluation_against_another_champion_is_no_reference(world: World) -> None:
    world.compared_with = 7
    assert world.release(2, over=1).reference == ((), ())
    world.to_the_end()
    world.compared_with = 2
    assert world.release(3, over=2).reference == world.scores


def test_a_target_that_does_not_answer_is_noted_and_waited_for(world: World) -> None:
    world.release(2, over=1)
    world.tick()
    world.target.down = True
    assert world.tick().trouble == "the target does not answer"
    world.target.down = False
    assert world.tick().trouble == ""
    assert world.to_the_end().outcome == "promoted"


def test_a_target_that_is_silent_until_the_deadline_has_stable_again_when_it_answers(world: World) -> None:
    world.release(2, over=1)
    world.tick()
    world.target.down = True
    with pytest.raises(ThroughlineError, match="the target does not answer"):
        world.tick(seconds=600)
    assert (world.rollout.outcome, world.rollout.ended_at) == ("rolled_back", None)
    world.target.down = False
    assert world.tick().ended_at is not None
    assert world.serving() == [(1, "stable", 1.0)]


def test_a_server_that_restarted_begins_to_count_anew_and_nobody_is_blamed(world: World) -> None:
    world.target.live = 1000
    world.release(2, over=1)
    for _ in range(2):
        world.tick(1)
    world.target.restart()
    after = world.tick(1)
    assert after.verdict.conclusion == "cannot_say"
    assert "fell" in after.verdict.reasons[0]
    assert world.to_the_end().outcome == "promoted"


# Crashes


class Crash(BaseException):
    """The process ends here."""


def crashing_at(world: World, monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """The process ends before the change of that number; the list of changes, as they are done."""
    done: list[str] = []

    def before(name: str) -> None:
        if len(done) + 1 == number:
            done.append("crash")
            raise Crash
        done.append(name)

    def wrapped(module, name: str, what: str) -> None:
        real = getattr(module, name)

        def call(*arguments, **options):
            before(what)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    world.target.before = before
    for module in (running, promotion):
        wrapped(module, "append", "history")
    wrapped(running, "write_rollout", "state")
    wrapped(promotion, "save_record", "record")
    return done


@pytest.mark.parametrize(("fault", "outcome"), [({}, "promoted"), ({"errors": 0.5}, "rolled_back")])
def test_a_crash_between_any_two_steps_leads_to_the_same_end(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: dict, outcome: str
) -> None:
    only = dict.fromkeys(["latency", "scores", "evaluation", "outcomes"])
    world.plan = CANARY | {"steps": [0.5], "dwell": "0s", "samples": 50, "judge": only}
    crashes, champion, candidate = 0, 1, 2
    while True:
        world.target.does[candidate] = fault
        before = len(world.steps_recorded())
        with monkeypatch.context() as patched:
            done = crashing_at(world, patched, crashes + 1)
            started = False
            while not (started and not world.rollout.running):
                try:
                    if started:
                        world.tick()
                    else:
                        world.release(candidate, over=champion)
                        started = True
                except Crash:
                    world.target.before = lambda _: None
        champion = candidate if outcome == "promoted" else 1
        assert world.rollout.outcome == outcome, done
        assert (world.everywhere(), world.serving()) == ({champion}, [(champion, "stable", 1.0)]), done
        assert world.steps_recorded()[before:] == ["started: canary 50%", outcome.replace("_", " ")], done
        assert len(set(world.champions())) == len(world.champions()), done
        if "crash" not in done:
            break
        crashes, candidate = crashes + 1, candidate + 1
    assert crashes > 8


# People


def test_a_pause_holds_the_shares_and_a_resumption_goes_on(world: World) -> None:
    world.release(2, over=1)
    world.tick()
    controller.pause(world.settings, world.usecase, ADA, world.clock)
    for _ in range(30):
        world.tick(seconds=60)
    assert world.serving() == [(1, "stable", 0.9), (2, "canary", 0.1)]
    with pytest.raises(ThroughlineError, match="is not paused: it is paused already"):
        controller.pause(world.settings, world.usecase, ADA, world.clock)
    controller.resume(world.settings, world.usecase, ADA, world.clock)
    assert world.to_the_end().outcome == "promoted"
    assert world.steps_recorded()[1:3] == ["paused", "resumed"]
    paused = events(world.settings, NAME, action="rollout")[1]
    assert (paused.actor, paused.target) == ("ada", f"{NAME}/2")


@pytest.mark.parametrize("paused", [True, False])
def test_an_abort_returns_to_stable_at_once(world: World, paused: bool) -> None:
    world.release(2, over=1)
    world.tick()
    if paused:
        controller.pause(world.settings, world.usecase, ADA, world.clock)
    done = controller.abort(world.settings, world.usecase, ADA, "on second thought", world.target, world.clock)
    assert (done.outcome, done.why) == ("aborted", "on second thought")
    assert done.ended_at is not None
    assert world.serving() == [(1, "stable", 1.0)]
    assert world.tick() == done


@pytest.mark.parametrize("change", [controller.pause, controller.resume])
def test_without_a_rollout_there_is_nothing_to_change(world: World, change) -> None:
    with pytest.raises(ThroughlineError, match="No rollout of flight_delay is under way"):
        change(world.settings, world.usecase, ADA)
    with pytest.raises(ThroughlineError, match="No rollout of flight_delay is under way"):
        controller.abort(world.settings, world.usecase, ADA, "", world.target)


def test_an_abort_that_the_target_does_not_follow_is_completed_by_the_next_look(world: World) -> None:
    world.release(2, over=1)
    world.tick()
    world.target.down = True
    with pytest.raises(ThroughlineError, match="the target does not answer"):
        controller.abort(world.settings, world.usecase, ADA, "", world.target, world.clock)
    world.target.down = False
    assert world.tick().outcome == "aborted"
    assert world.serving() == [(1, "stable", 1.0)]


def test_a_rollback_while_a_rollout_is_under_way_returns_to_its_stable_version(world: World) -> None:
    world.release(2, over=1)
    world.tick()
    endpoint = world.rollback()
    assert isinstance(endpoint, EndpointRecord)
    assert endpoint.model.version == 1
    assert world.serving() == [(1, "stable", 1.0)]
    assert (world.rollout.outcome, world.rollout.why) == ("aborted", "bad")
    assert world.champions() == [f"{NAME}/1"]


# What is refused


def test_a_second_rollout_is_refused_and_a_repeated_release_returns_the_first(world: World) -> None:
    first = world.release(2, over=1)
    with pytest.raises(ThroughlineError, match=f"{NAME}/3 is not deployed: a rollout of {NAME}/2 is under way"):
        world.release(3, over=1)
    assert world.release(2, over=1) == first
    assert world.steps_recorded() == GOOD_HISTORY[:1]


def test_direct_is_for_a_first_deployment(world: World) -> None:
    world.plan = {"strategy": "direct"}
    with pytest.raises(ThroughlineError, match=r"`release.strategy: direct` is for a first deployment; declare canary"):
        world.release(2, over=1)
    assert world.serving() == [(1, "stable", 1.0)]
    assert not (world.settings.serving_home / NAME / FILE).exists()


def test_a_plan_that_needs_what_the_target_lacks_is_refused(world: World) -> None:
    world.target.capabilities = Capabilities(weights=False, sticky=True, mirror=True)
    with pytest.raises(ThroughlineError, match="the plan canary needs weights, which this target cannot carry"):
        world.release(2, over=1)
    assert not (world.settings.serving_home / NAME / FILE).exists()


def test_the_graph_does_not_start_a_rollout_of_a_version_that_went_back_but_people_do(world: World) -> None:
    world.target.does[2] = {"errors": 0.5}
    world.release(2, over=1)
    world.to_the_end()
    with pytest.raises(
        ThroughlineError, match=f"its rollout was rolled back or aborted; `throughline promote {NAME}/2"
    ):
        world.release(2, over=1)
    world.target.does[2] = {}
    assert isinstance(world.promote(2), Rollout)
    assert world.to_the_end().outcome == "promoted"
    assert world.everywhere() == {2}


def test_a_restoration_does_not_disturb_a_rollout(world: World) -> None:
    world.release(2, over=1)
    world.tick()
    world.alias = None
    promotion.restore(world.settings, world.usecase, target=world.target)
    assert world.serving() == [(1, "stable", 0.9), (2, "canary", 0.1)]


def test_other_strategies_pass_their_stages_on_the_same_controller(world: World) -> None:
    for number, plan, seen in (
        (2, {"strategy": "blue_green", "dwell": "5s"}, [(1, "stable", 0.0), (2, "canary", 1.0)]),
        (3, {"strategy": "shadow_canary", "steps": [0.5], "dwell": "5s"}, [(2, "stable", 1.0), (3, "shadow", 1.0)]),
    ):
        world.plan = plan
        world.release(number, over=number - 1)
        assert world.to_the_end().outcome == "promoted"
        assert seen in world.target.history
        assert world.everywhere() == {number}
    world.plan = {"strategy": "ab", "duration": "30s", "sticky": "carrier", "samples": 100}
    world.target.live, world.target.does = 400, {3: {"labelled": 1.0}, 4: {"labelled": 1.0, "brier": 0.05}}
    world.release(4, over=3)
    assert world.target.served[NAME].sticky is None
    world.tick()
    assert world.target.served[NAME].sticky.key == "carrier"
    assert world.to_the_end().why.startswith("brier: the candidate is better")
    world.target.does[5] = {"labelled": 1.0, "brier": 0.05}
    world.release(5, over=4)
    assert world.to_the_end().why == "brier: not shown to be better than stable"
    assert world.everywhere() == {4}
