"""A home with a registry of made-up versions, a history and a fake target."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.support.fake_target import FakeTarget, StoppedClock
from tests.support.rollouts import reference
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import Principal
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, EvaluationRecord, GateDecision, ModelRecord, RuleVerdict
from throughline.records.store import load_record
from throughline.registry import decisions
from throughline.registry.history import events
from throughline.rollout import controller, promotion, running
from throughline.rollout.state import Rollout, read_rollout
from throughline.usecase import UseCase, get_usecase
from throughline.usecase.release import Release

NAME, ADA = "flight_delay", Principal("ada")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PASSED = RuleVerdict(rule="auc", verdict="pass", value=0.75, bound="at least 0.72")
CANARY = {"strategy": "canary", "steps": [0.1, 0.5], "dwell": "10s", "samples": 100, "deadline": "5m"}


def version(number: int, **changes: Any) -> ModelRecord:
    made = ModelRecord(
        name=NAME, version=number, run_id="r", sha256=f"{number:064d}", uri="/nowhere", dataset_fingerprint="f",
        trained_until=NOW, trainer="t", parameters={},
    )  # fmt: skip
    return made.model_copy(update=changes)


class World:
    """Everything that a release touches. `plan`: of releases from now on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = StoppedClock()
        self.target = FakeTarget(self.clock)
        self.alias: ModelReference | None = None
        self.plan: dict[str, Any] = CANARY
        self.scores = reference()
        self.compared_with: int | None = None  # in evaluations; None: the champion

    @property
    def usecase(self) -> UseCase:
        plan = TypeAdapter(Release).validate_python(self.plan)
        return get_usecase(NAME).model_copy(update={"release": plan})

    def set_alias(self, settings: Settings, made: ModelReference) -> None:
        self.target.before("alias")
        self.alias = made

    def decide(self, number: int, over: int | None = None, word: str = "release") -> GateDecision:
        decision = GateDecision(
            model=f"{NAME}/{number}", sha256=version(number).sha256, decision=word, decided_at=NOW, rules=[PASSED],
            compared_with=over and f"{NAME}/{over}",
        )  # fmt: skip
        return decisions.recorded(self.settings, NAME, decision)

    def release(self, number: int, over: int | None = None) -> EndpointRecord | Rollout:
        decision = self.decide(number, over)
        return promotion.release(self.settings, self.usecase, version(number), decision, "passed", self.target)

    def promote(self, number: int, reason: str = "better") -> EndpointRecord | Rollout:
        return promotion.promote(self.settings, self.usecase, version(number), ADA, reason, self.target)

    def rollback(self) -> EndpointRecord:
        return promotion.rollback(self.settings, self.usecase, ADA, "bad", self.target)

    def tick(self, seconds: float = 5) -> Rollout:
        self.clock.advance(seconds)
        rollout = controller.tick(self.settings, self.usecase, self.target, self.clock)
        assert rollout is not None
        return rollout

    def to_the_end(self, seconds: float = 5) -> Rollout:
        for _ in range(200):
            if (rollout := self.tick(seconds)).ended_at is not None:
                return rollout
        raise AssertionError(f"it never ended: {rollout.verdict}, {rollout.trouble}")

    @property
    def rollout(self) -> Rollout:
        found = read_rollout(self.settings, NAME)
        assert found is not None
        return found

    def serving(self) -> list[tuple[int, str, float]]:
        return [(one.version, one.role, one.weight) for one in self.target.served[NAME].revisions]

    def champions(self) -> list[str | None]:
        return [event.new for event in events(self.settings, NAME, action="champion")]

    def steps_recorded(self) -> list[str | None]:
        """The steps of rollouts in the history."""
        return [event.new for event in events(self.settings, NAME, action="rollout")]

    def everywhere(self) -> set[int | None]:
        """The version that serves, that of the endpoint's record, and that of the alias."""
        endpoint = load_record(self.settings, (NAME, "deployment", "endpoint"), EndpointRecord)
        return {self.target.served[NAME].stable.version, endpoint.model.version, self.alias and self.alias.version}


def make_world(settings: Settings, patch: pytest.MonkeyPatch) -> World:
    """Version 1 is champion."""
    world = World(settings)

    def evaluation(_settings: Settings, model: ModelRecord) -> EvaluationRecord | None:
        stable, candidate = (list(map(int, counts)) for counts in world.scores)
        return EvaluationRecord.model_construct(
            model=model.reference,
            sha256=model.sha256,
            champion_model=ModelReference(NAME, world.compared_with) if world.compared_with else world.alias,
            score_counts={"champion": stable, "candidate": candidate},
        )

    patch.setattr(promotion.models, "set_alias", world.set_alias)
    patch.setattr(promotion.models, "alias", lambda *_: world.alias)
    patch.setattr(promotion.models, "get", lambda _settings, wanted: version(wanted.version))
    patch.setattr(running.publish, "fetch", evaluation)
    patch.setattr(controller, "recent_requests", lambda *_: ([{"a": n} for n in range(100)], "made up"))
    patch.setattr(promotion, "_serving", lambda *_: _stable(world))
    world.release(1)
    return world


def _stable(world: World) -> ModelReference | None:
    served = world.target.served.get(NAME)
    return served.stable.model if served else None
