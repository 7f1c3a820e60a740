"""A change of champion: what is checked before it, the order of its steps, and its completion after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.support.fake_target import FakeTarget, StoppedClock
from tests.support.promoted import at_once
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import try_lock
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import Principal
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, GateDecision, ModelRecord, RuleVerdict
from throughline.records.store import load_record, save_record
from throughline.registry import decisions
from throughline.registry.champions import Line
from throughline.registry.history import append, events
from throughline.rollout import promotion, running
from throughline.rollout.promotion import promote, release, restore, rollback
from throughline.rollout.revision import FILE, only, read_revisions, revision_of, write_revisions
from throughline.rollout.state import Rollout
from throughline.rollout.target import Target
from throughline.usecase import UseCase, get_usecase
from throughline.usecase.release import Release

NAME, ADA = "flight_delay", Principal("ada")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PASSED = RuleVerdict(rule="auc", verdict="pass", value=0.75, bound="at least 0.72")
GOOD = "rollout canary: good"
STEPS = ["serve", "history", "record", "alias"]


def version(number: int, **changes: Any) -> ModelRecord:
    made = ModelRecord(
        name=NAME, version=number, run_id="r", sha256=f"{number:064d}", uri="/nowhere", dataset_fingerprint="f",
        trained_until=NOW, trainer="t", parameters={},
    )  # fmt: skip
    return made.model_copy(update=changes)


class World:
    """The model server and MLflow; `steps`: what was changed, in order. A step in `failing` raises."""

    def __init__(self, settings: Settings) -> None:
        plan = TypeAdapter(Release).validate_python({"strategy": "canary", "steps": [0.5]})
        self.settings, self.usecase = settings, get_usecase(NAME).model_copy(update={"release": plan})
        self.target = FakeTarget(StoppedClock())
        self.steps: list[str] = []
        self.failing: set[str] = set()
        self.placed: list[int] = []
        self.alias: ModelReference | None = None

    def step(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any) -> Any:
            assert try_lock(self.settings.home / "locks" / f"champion-{NAME}") is None, "outside the lock"
            if name in self.failing:
                raise ThroughlineError(f"{name} failed")
            self.steps.append(name)
            return act(*arguments)

        return acting

    def serve(self, target: Target, usecase: UseCase, model: ModelRecord) -> EndpointRecord:
        assert (target, usecase.name) == (self.target, NAME)
        revision = revision_of(NAME, model, NOW)
        write_revisions(self.settings.serving_home / NAME, only(revision))
        return EndpointRecord(
            usecase=NAME, model=model.reference, sha256=model.sha256, revision=revision.revision, address="a",
            deployed_at=NOW,
        )  # fmt: skip

    def place(self, usecase: UseCase, model: ModelRecord) -> None:
        assert usecase.name == NAME
        self.placed.append(model.version)

    def set_alias(self, settings: Settings, reference: ModelReference) -> None:
        assert settings == self.settings
        self.alias = reference

    def get_alias(self, settings: Settings, name: str) -> ModelReference | None:
        assert (settings, name) == (self.settings, NAME)
        return self.alias

    def get(self, settings: Settings, reference: ModelReference) -> ModelRecord:
        assert settings == self.settings
        return version(reference.version)

    def everywhere(self) -> set[int | None]:
        """The version that serves, that of the endpoint's record, and that of the alias."""
        served = read_revisions(self.settings.serving_home / NAME)
        endpoint = load_record(self.settings, (NAME, "deployment", "endpoint"), EndpointRecord)
        return {served and served.stable.version, endpoint.model.version, self.alias and self.alias.version}

    def changes(self) -> list[tuple[str, str, str | None, str | None, str]]:
        found = [event for event in events(self.settings, NAME) if event.action in ("champion", "withdrawn")]
        targets = {event.target for event in found if event.action == "champion"}
        assert targets <= {NAME}
        return [(event.action, event.actor, event.old, event.new, event.reason) for event in found]

    def decide(self, number: int, over: int | None = None, word: str = "release", **changes: Any) -> GateDecision:
        decision = GateDecision(
            model=f"{NAME}/{number}", sha256=version(number).sha256, decision=word, decided_at=NOW, rules=[PASSED],
            compared_with=over and f"{NAME}/{over}",
        )  # fmt: skip
        return decisions.recorded(self.settings, NAME, decision.model_copy(update=changes))

    def release(self, number: int, over: int | None = None) -> EndpointRecord:
        decision = self.decide(number, over)
        return self.ended(release(self.settings, self.usecase, version(number), decision, "passed", self.target))

    def promote(self, number: int, reason: str = "better") -> EndpointRecord:
        return self.ended(promote(self.settings, self.usecase, version(number), ADA, reason, self.target))

    def rollback(self) -> EndpointRecord:
        return rollback(self.settings, self.usecase, ADA, "bad", self.target)

    def restore(self) -> Line:
        return restore(self.settings, self.usecase, target=self.target)

    def ended(self, released: EndpointRecord | Rollout) -> EndpointRecord:
        return at_once(self.settings, self.usecase, self.target, released)


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(settings)
    monkeypatch.setattr(promotion, "serve", world.step("serve", world.serve))
    monkeypatch.setattr(world.target, "place", world.step("place", world.place))
    monkeypatch.setattr(running.publish, "fetch", lambda *_: None)
    monkeypatch.setattr(promotion, "append", world.step("history", append))
    monkeypatch.setattr(promotion, "save_record", world.step("record", save_record))
    monkeypatch.setattr(promotion.models, "set_alias", world.step("alias", world.set_alias))
    monkeypatch.setattr(promotion.models, "alias", world.get_alias)
    monkeypatch.setattr(promotion.models, "get", world.get)
    return world


@pytest.fixture
def two(world: World) -> World:
    """The second version is champion, the first one was before it."""
    world.release(1)
    world.release(2, over=1)
    world.steps.clear()
    world.placed.clear()
    return world


# Releases by the graph


def test_a_release_serves_then_records_then_moves_the_alias(world: World) -> None:
    assert world.release(1).model == ModelReference(NAME, 1)
    assert world.steps == STEPS
    assert world.release(2, over=1).revision == revision_of(NAME, version(2), NOW).revision
    assert world.everywhere() == {2}
    assert world.changes() == [
        ("champion", "graph", None, f"{NAME}/1", "passed"),
        ("champion", "graph", f"{NAME}/1", f"{NAME}/2", f"passed; {GOOD}"),
    ]


def test_a_repeated_release_serves_again_and_records_nothing_new(two: World) -> None:
    two.release(2, over=1)
    assert two.steps == ["serve", "record", "alias"]
    assert len(two.changes()) == 2


def test_a_candidate_that_was_compared_with_another_champion_is_not_released(two: World) -> None:
    for over in (1, None):
        with pytest.raises(
            ThroughlineError, match=rf"compared with ({NAME}/1|no champion), but {NAME}/2 is champion now"
        ):
            two.release(3, over=over)
    assert two.steps == []


def test_the_graph_does_not_release_a_former_champion(two: World) -> None:
    with pytest.raises(ThroughlineError, match=rf"{NAME}/1 is not deployed: it was champion before"):
        two.release(1, over=2)
    assert two.steps == []


def test_a_decision_that_is_not_in_the_history_releases_nothing(world: World) -> None:
    forged = world.decide(1, word="reject").model_copy(update={"decision": "release"})
    with pytest.raises(ThroughlineError, match="the history has another decision about it: reject"):
        release(world.settings, world.usecase, version(1), forged, "passed", world.target)
    assert world.steps == []


# Promotions


def test_a_released_version_is_promoted_by_its_principal_though_a_later_decision_rejects_it(two: World) -> None:
    two.decide(1, over=2, word="reject")
    assert two.promote(1).model == ModelReference(NAME, 1)
    assert two.steps == ["place", *STEPS]
    assert two.everywhere() == {1}
    assert two.changes()[2:] == [("champion", "ada", f"{NAME}/2", f"{NAME}/1", f"better; {GOOD}")]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (None, "the gate has not decided"),
        ("wait", "the gate's decision is wait"),
        ("reject", "the gate's decision is reject"),
    ],
)
def test_a_version_that_was_never_released_is_not_promoted(world: World, word: str | None, problem: str) -> None:
    if word:
        world.decide(1, word=word)
    world.decide(2)  # about another version
    with pytest.raises(ThroughlineError, match=rf"{NAME}/1 is not promoted: {problem}"):
        world.promote(1)
    assert world.steps == []


def test_another_file_than_the_released_one_is_not_promoted(two: World) -> None:
    with pytest.raises(ThroughlineError, match="is not promoted"):
        promote(two.settings, two.usecase, version(1, sha256="f" * 64), ADA, "better", two.target)
    assert two.steps == []


def test_a_release_without_an_approval_is_not_promoted_under_the_manual_policy(two: World) -> None:
    manual = two.usecase.release.model_copy(update={"policy": "manual"})
    usecase = two.usecase.model_copy(update={"release": manual})
    with pytest.raises(ThroughlineError, match="the decision has no approval"):
        promote(two.settings, usecase, version(1), ADA, "better", two.target)
    assert two.steps == []


@pytest.mark.parametrize("reason", ["", " \n"])
def test_a_promotion_needs_a_reason(two: World, reason: str) -> None:
    with pytest.raises(ThroughlineError, match="give a --reason"):
        two.promote(1, reason)
    assert two.steps == []


@pytest.mark.parametrize("failing", STEPS)
def test_an_interrupted_promotion_is_completed_by_its_repetition(two: World, failing: str) -> None:
    two.failing = {failing}
    with pytest.raises(ThroughlineError, match=f"{failing} failed"):
        two.promote(1)
    two.failing = set()
    two.promote(1)
    assert two.everywhere() == {1}
    assert two.changes()[2:] == [("champion", "ada", f"{NAME}/2", f"{NAME}/1", f"better; {GOOD}")]


# Rollbacks


def test_a_rollback_returns_to_the_champion_before_and_a_second_one_finds_none(two: World) -> None:
    assert two.rollback().model == ModelReference(NAME, 1)
    assert two.steps == ["place", "history", *STEPS]
    assert (two.placed, two.everywhere()) == ([1], {1})
    change = ("ada", f"{NAME}/2", f"{NAME}/1", "bad")
    assert two.changes()[2:] == [("withdrawn", *change), ("champion", *change)]
    with pytest.raises(ThroughlineError, match=rf"no champion before {NAME}/1 to return to"):
        two.rollback()


def test_a_version_that_was_rolled_back_from_is_promoted_as_a_new_champion(two: World) -> None:
    two.rollback()
    two.promote(2)
    assert two.changes()[-1] == ("champion", "ada", f"{NAME}/1", f"{NAME}/2", f"better; {GOOD}")
    assert two.rollback().model == ModelReference(NAME, 1)


def test_without_a_champion_there_is_no_rollback(world: World) -> None:
    with pytest.raises(ThroughlineError, match="has no champion before the first to return to: `throughline history"):
        world.rollback()


def test_a_rollback_where_nothing_is_deployed_serves_the_champion_again(two: World) -> None:
    (two.settings.serving_home / NAME / FILE).unlink()
    two.alias = None
    assert two.rollback().model == ModelReference(NAME, 2)
    assert two.steps == ["place", "serve", "record", "alias"]


def test_a_rollback_to_a_file_that_was_never_released_changes_nothing(
    two: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion.models, "get", lambda *_: version(1, sha256="f" * 64))
    with pytest.raises(ThroughlineError, match="the history has no release of its registered file"):
        two.rollback()
    assert two.steps == []


def test_a_rollback_whose_file_cannot_be_placed_changes_nothing(two: World) -> None:
    two.failing = {"place"}
    with pytest.raises(ThroughlineError, match="place failed"):
        two.rollback()
    assert (two.steps, two.everywhere()) == ([], {2})


@pytest.mark.parametrize("failing", STEPS)
def test_an_interrupted_rollback_is_completed_by_its_repetition(two: World, failing: str) -> None:
    two.failing = {failing}
    with pytest.raises(ThroughlineError, match=f"{failing} failed"):
        two.rollback()
    two.failing = set()
    assert two.rollback().model == ModelReference(NAME, 1)
    assert two.everywhere() == {1}
    assert [action for action, *_ in two.changes()[2:]] == ["withdrawn", "champion"]


# Restoring


def test_restore_changes_nothing_when_everything_follows_the_history(two: World) -> None:
    assert two.restore().champion == ModelReference(NAME, 2)
    assert two.steps == []


def test_restore_puts_back_an_alias_that_was_moved(two: World) -> None:
    two.alias = ModelReference(NAME, 1)
    two.restore()
    assert (two.steps, two.everywhere()) == (["serve", "record", "alias"], {2})
    assert len(two.changes()) == 2


@pytest.mark.parametrize("damaged", [True, False])
def test_restore_serves_the_champion_when_the_revision_file_is_damaged_or_gone(two: World, damaged: bool) -> None:
    file = two.settings.serving_home / NAME / FILE
    file.write_text("{half") if damaged else file.unlink()
    two.restore()
    assert two.everywhere() == {2}


def test_restore_writes_a_missing_record_of_the_endpoint(two: World) -> None:
    (two.settings.records / NAME / "deployment" / "endpoint.json").unlink()
    two.restore()
    assert (two.steps, two.everywhere()) == (["serve", "record", "alias"], {2})


def test_restore_leaves_an_interrupted_rollback_to_its_repetition(two: World) -> None:
    two.failing = {"serve"}
    with pytest.raises(ThroughlineError, match="serve failed"):
        two.rollback()
    two.failing = set()
    two.steps.clear()
    assert two.restore().champion == ModelReference(NAME, 1)
    assert two.steps == []


def test_restore_without_a_champion_changes_nothing(world: World) -> None:
    assert world.restore().champion is None
    assert world.steps == []
