"""Gate decisions and approvals in the history: nothing is served on a decision that is not recorded there.

Owns: recording and finding them. Does not own: the rules (`evaluation/gate.py`, `registry/approval.py`), the table
(`history.py`), what a decision permits (`rollout/`).
"""

from __future__ import annotations

from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH, Principal, principal_named
from throughline.foundation.settings import Settings
from throughline.records import GateDecision, HistoryEvent, ModelRecord, RuleVerdict
from throughline.registry.approval import Approval, approval_verdict, objection, submitters
from throughline.registry.history import append, event_of, events
from throughline.registry.versions import tags_of
from throughline.usecase import UseCase


def decisions(settings: Settings, usecase: str, reference: ModelReference) -> list[GateDecision]:
    """The gate's decisions about a version, oldest first. Raises when one cannot be read."""
    found = []
    for event in events(settings, usecase, target=reference, action="decided"):
        try:
            found.append(GateDecision.model_validate_json(event.new or ""))
        except ValidationError as error:
            raise ThroughlineError(
                f"The decision about {reference} of {event.at.isoformat()} cannot be read: train a new version."
            ) from error
    return found


def newest(settings: Settings, usecase: str, reference: ModelReference) -> GateDecision | None:
    """The decision that holds for a version: the newest; None when the gate never decided about it."""
    return next(reversed(decisions(settings, usecase, reference)), None)


def released(settings: Settings, usecase: str, model: ModelRecord) -> GateDecision | None:
    """The newest decision that released this version with this very file, whatever was decided later; or None."""
    found = reversed(decisions(settings, usecase, model.reference))
    return next((one for one in found if one.decision == "release" and one.sha256 == model.sha256), None)


def recorded(settings: Settings, usecase: str, decision: GateDecision) -> GateDecision:
    """The decision in the history: the one that holds when it is the same but for its time, otherwise this one, new."""
    holds = newest(settings, usecase, decision.model)
    if holds is not None and same(holds, decision.model_copy(update={"decided_at": holds.decided_at})):
        return holds
    content = decision.model_dump_json()
    reason = decision.failures or "every rule passed"
    append(settings, usecase, event_of("decided", decision.model, GRAPH, new=content, reason=reason, once=content))
    return decision


def same(one: GateDecision, other: GateDecision) -> bool:
    """Equality to the last digit; NaN equals NaN."""
    return one.model_dump_json() == other.model_dump_json()


def approval_of(settings: Settings, usecase: UseCase, model: ModelRecord) -> RuleVerdict:
    """The verdict of the approval rule about this version and file, by the history and today's groups."""
    given = [
        Approval(principal_named(settings, event.actor), event.new, event.reason)
        for event in events(settings, usecase.name, target=model.reference, action="approved")
    ]
    return approval_verdict(usecase, model, _submitters(settings, usecase, model) if given else frozenset(), given)


def approve(settings: Settings, usecase: UseCase, model: ModelRecord, who: Principal, reason: str) -> HistoryEvent:
    """Record that `who` approves a version that waits. Repeating it is harmless.

    Raises `ThroughlineError` when nothing waits for it or the approval would not count; then nothing is recorded.
    """
    if usecase.release.policy != "manual":
        raise ThroughlineError(
            f"{usecase.name} is released without approval (release.policy: auto): nothing to approve."
        )
    holds = newest(settings, usecase.name, model.reference)
    if holds is None or holds.sha256 != model.sha256:
        raise ThroughlineError(f"{model.reference} waits for no approval: the gate has not decided about this file.")
    if holds.decision != "wait":
        why = f" ({holds.failures})" if holds.failures else f": `throughline promote {model.reference}` serves it"
        raise ThroughlineError(
            f"{model.reference} waits for no approval: the gate's decision is {holds.decision}{why}."
        )
    given = Approval(who, model.sha256, reason)
    if why_not := objection(usecase, model, _submitters(settings, usecase, model), given):
        raise ThroughlineError(f"{model.reference} is not approved: {why_not}.")
    once = [who.name, model.sha256, holds.decided_at.isoformat()]
    event = event_of("approved", model.reference, who.name, new=model.sha256, reason=reason, once=once)
    append(settings, usecase.name, event)
    return event


def _submitters(settings: Settings, usecase: UseCase, model: ModelRecord) -> frozenset[str]:
    if usecase.release.submitter_may_approve:
        return frozenset()  # not needed then
    registered = events(settings, usecase.name, target=model.reference, action="registered")
    return submitters(tags_of(settings, model.reference), registered)
