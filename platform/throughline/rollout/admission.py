"""What may be served: a version that the gate released, by a decision that stands in the history.

Owns: refusals. Does not own: the decision to release (`evaluation/gate.py`), what follows (`promotion.py`).
"""

from __future__ import annotations

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import GateDecision, ModelRecord
from throughline.registry.approval import RULE as APPROVAL
from throughline.registry.decisions import newest, released, same
from throughline.usecase import UseCase


def refusal(decision: GateDecision, model: ModelRecord, recorded: GateDecision | None, policy: str) -> str | None:
    """Why the decision does not permit this model version and file to be served; None when it does.

    `recorded`: the decision about it that holds by the history, None when there is none; `policy`: the release's.
    """
    if decision.decision != "release":
        return f"the gate's decision is {decision.decision} ({decision.reasons})"
    if not decision.rules or any(rule.verdict != "pass" for rule in decision.rules):
        return f"the decision is release, but not every rule passed ({decision.reasons or 'no rules'})"
    if decision.model != model.reference:
        return f"the gate decided about {decision.model}"
    if decision.sha256 != model.sha256:
        return f"the gate decided about a file with digest {decision.sha256[:12]}, registered is {model.sha256[:12]}"
    if policy == "manual" and not any(rule.rule == APPROVAL for rule in decision.rules):
        return "the policy is manual, and the decision has no approval"
    if recorded is None:
        return "the history has no decision about it"
    if not same(decision, recorded):
        return f"the history has another decision about it: {recorded.decision}, {recorded.decided_at.isoformat()}"
    return None


def require_release(settings: Settings, usecase: UseCase, model: ModelRecord, decision: GateDecision) -> None:
    """Raises `ThroughlineError` when the decision, or the one that holds by the history, does not permit `model`."""
    holds = newest(settings, usecase.name, model.reference)
    if reason := refusal(decision, model, holds, usecase.release.policy):
        raise ThroughlineError(f"{model.reference} is not deployed: {reason}.")


def require_released(settings: Settings, usecase: UseCase, model: ModelRecord) -> None:
    """Raises `ThroughlineError` unless the gate once released this version with this very file."""
    decision = released(settings, usecase.name, model)
    if decision is None:
        holds = newest(settings, usecase.name, model.reference)
        why = f"the gate's decision is {holds.decision} ({holds.failures})" if holds else "the gate has not decided"
        raise ThroughlineError(f"{model.reference} is not promoted: {why}.")
    if why_not := refusal(decision, model, decision, usecase.release.policy):
        raise ThroughlineError(f"{model.reference} is not promoted: {why_not}.")
