"""When a person's approval counts, where the declaration's policy asks for one. Pure.

Owns: who may approve what, and why an approval does not count. Does not own: who somebody is
(`foundation/security/principal.py`), where approvals are kept (`decisions.py`), what follows from one
(`evaluation/gate.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from throughline.foundation.security.principal import GRAPH, Principal
from throughline.records import HistoryEvent, ModelRecord, RuleVerdict
from throughline.usecase import UseCase

RULE = "approval"


@dataclass(frozen=True)
class Approval:
    """`by` with the groups of today, `sha256` of the file that was approved."""

    by: Principal
    sha256: str | None
    reason: str


def submitters(tags: Mapping[str, str], registered: Iterable[HistoryEvent]) -> frozenset[str]:
    """Everybody who is said to have submitted a version, by its tags and by the history; none: nobody knows."""
    return frozenset({*(event.actor for event in registered), tags.get("submitter", "")} - {""})


def objection(usecase: UseCase, model: ModelRecord, submitted_by: Set[str], approval: Approval) -> str | None:
    """Why an approval of `model` does not count; None when it does. `submitted_by`: see `submitters`."""
    name = approval.by.name
    if name == GRAPH or not approval.by.is_among(usecase.approvers):
        return (
            f"{name} is not among the approvers of {usecase.name} ({', '.join(usecase.approvers) or 'none declared'})"
        )
    if approval.sha256 != model.sha256:
        return f"{name} approved another file than the one registered"
    if not approval.reason.strip():
        return f"{name} gave no reason"
    if usecase.release.submitter_may_approve:
        return None
    if name in submitted_by:
        return f"{name} submitted it, and somebody else has to approve"
    if not submitted_by:
        return "nobody knows who submitted it, so it cannot be told that it was somebody else"
    return None


def approval_verdict(
    usecase: UseCase, model: ModelRecord, submitted_by: Set[str], approvals: Iterable[Approval]
) -> RuleVerdict:
    """One that counts is enough; without one the rule cannot say, and tells why the others do not count."""
    objections = []
    for approval in approvals:
        why_not = objection(usecase, model, submitted_by, approval)
        if why_not is None:
            told = f"by {approval.by.name}: {approval.reason}"
            return RuleVerdict(rule=RULE, verdict="pass", value=None, bound=told)
        objections.append(why_not)
    wanted = f"waits for one of {', '.join(usecase.approvers) or 'nobody: none is declared'}"
    how = f"throughline approve {model.reference} --reason TEXT"
    told = "; ".join([*dict.fromkeys(objections), f"{wanted}: {how}"])
    return RuleVerdict(rule=RULE, verdict="cannot_say", value=None, bound=told)
