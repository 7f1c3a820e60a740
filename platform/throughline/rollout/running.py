"""Starting a rollout, recording what happens to it, and returning to stable: under the lock, without a new champion.

Owns: what a rollout needs before it starts, the events of its steps in the history. Does not own: the decision to start
(`promotion.py`), its transitions (`strategy.py`), looking at it (`controller.py`).
"""

from __future__ import annotations

import logging
import uuid
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from throughline.evaluation import publish
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, EvaluationRecord, ModelRecord
from throughline.records.store import find_record
from throughline.registry import versions as models
from throughline.registry.history import append, event_of
from throughline.rollout.comparison import Reference
from throughline.rollout.revision import revision_of
from throughline.rollout.state import Rollout, read_rollout, write_rollout
from throughline.rollout.strategy import begun, desired, finished, lacking
from throughline.rollout.target import Target
from throughline.usecase import UseCase
from throughline.usecase.release import Direct

logger = logging.getLogger(__name__)


def champion_lock(settings: Settings, usecase: UseCase) -> AbstractContextManager[None]:
    """Serialises changes of champion and of rollouts on this machine."""
    return locked(settings.home / "locks" / f"champion-{usecase.name}")


def running(settings: Settings, usecase: UseCase) -> Rollout | None:
    """The rollout that is under way; None when there is none. Raises when its state cannot be read."""
    rollout = read_rollout(settings, usecase.name)
    return rollout if rollout is not None and rollout.running else None


def start(
    settings: Settings,
    usecase: UseCase,
    target: Target,
    champion: ModelReference,
    model: ModelRecord,
    actor: str,
    reason: str,
) -> Rollout:
    """Begin to move traffic from the champion to `model`; the first look has it loaded. Call it under the lock.

    A rollout of the same version that is under way is returned. Raises `ThroughlineError` when another one is, and when
    the plan cannot be carried out here.
    """
    if (current := running(settings, usecase)) is not None:
        if current.model.reference == model.reference:
            return save(settings, current)
        raise ThroughlineError(
            f"{model.reference} is not deployed: a rollout of {current.model.reference} is under way; wait for its end "
            f"(`throughline rollout show {usecase.name}`), or abort it."
        )
    plan = usecase.release
    if isinstance(plan, Direct):
        raise ThroughlineError(
            f"{model.reference} is not deployed: {champion} is champion, and `release.strategy: direct` is for a first "
            f"deployment; declare canary, blue_green, ab or shadow_canary in usecases/{usecase.name}.yaml."
        )
    if missing := lacking(plan, target.capabilities):
        raise ThroughlineError(
            f"{model.reference} is not deployed: the plan {plan.strategy} needs {missing}, which this target cannot "
            "carry; declare another strategy."
        )
    target.place(usecase, model)
    now = datetime.now(UTC)
    endpoint = find_record(settings, (usecase.name, "deployment", "endpoint"), EndpointRecord)
    since = endpoint.deployed_at if endpoint is not None and endpoint.model == champion else now
    rollout = begun(
        uuid.uuid4().hex[:12],
        plan,
        revision_of(usecase.name, models.get(settings, champion), since),
        revision_of(usecase.name, model, now),
        model,
        now,
        actor=actor,
        reason=reason,
        reference=_reference(settings, usecase, model, champion),
    )
    return save(settings, rollout.model_copy(update={"look": target.evidence(usecase.name)}))


def save(settings: Settings, rollout: Rollout) -> Rollout:
    """Write the state, then record its new steps in the history: a step that is recorded twice is there once."""
    write_rollout(settings, rollout)
    if rollout.recorded == len(rollout.steps):
        return rollout
    for number in range(rollout.recorded, len(rollout.steps)):
        step = rollout.steps[number]
        event = event_of(
            "rollout",
            rollout.model.reference,
            rollout.actor if number == 0 else step.by or GRAPH,
            old=rollout.stable.model,
            new=step.what,
            reason=step.why,
            once=[rollout.rollout, number],
        )
        append(settings, rollout.usecase, event)
    recorded = rollout.model_copy(update={"recorded": len(rollout.steps)})
    write_rollout(settings, recorded)
    return recorded


def give_back(settings: Settings, target: Target, rollout: Rollout, now: datetime) -> Rollout:
    """Carry out an outcome other than promotion: stable alone serves. Raises when the target does not follow."""
    target.apply(desired(rollout))
    return save(settings, finished(rollout, now))


def _reference(settings: Settings, usecase: UseCase, model: ModelRecord, champion: ModelReference) -> Reference:
    """Score counts of champion and version on the same rows of its evaluation; empty ones when they are not known."""
    newest = find_record(settings, (usecase.name, "evaluation", "evaluation"), EvaluationRecord)
    if newest is None or (newest.model, newest.sha256) != (model.reference, model.sha256):
        try:
            newest = publish.fetch(settings, model)
        except Exception:  # each kind of store raises its own; the other metrics are judged all the same
            logger.exception("The evaluation of %s cannot be read", model.reference)
            newest = None
    if newest is None or newest.champion_model != champion:
        return (), ()
    counts = newest.score_counts
    return tuple(map(float, counts.get("champion", ()))), tuple(map(float, counts.get("candidate", ())))
