"""When an approval counts, where the release policy is `manual`. Pure.

Owns: who may approve what, and why an approval does not count. Does not own: principals
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
    """`by`: with today's groups; `sha256`: of the approved file."""

    by: Principal
    sha256: str | None
    reason: str


def submitters(tags: Mapping[str, str], registered: Iterable[HistoryEvent]) -> frozenset[str]:
    """The submitters of a version by its tags and by the history; empty: unknown."""
    return frozenset({*(event.actor for event in registered), tags.get("submitter", "")} - {""})


def objection(usecase: UseCase, model: ModelRecord, submitted_by: Set[str], approval: Approval) -> str | None:
    """Why an approval of `model` does not count; None when it does. `submitted_by`: see `submitters`."""
    name = approval.by.name
    if name == GRAPH or not approval.by.is_among(usecase.approvers):
        declared = ", ".join(usecase.approvers) or "none declared"
        return f"{name} is not among the approvers of {usecase.name} ({declared})"
    if approval.sha256 != model.sha256:
        return f"{name} approved another file than the one registered"
    if not approval.reason.strip():
        return f"{name} gave no reason"
    if usecase.release.submitter_may_approve:
        return None
    if name in submitted_by:
        return f"{name} submitted it, and another principal has to approve"
    if not submitted_by:
        return f"who submitted it is not recorded, so {name} may have"
    return None


def approval_verdict(
    usecase: UseCase, model: ModelRecord, submitted_by: Set[str], approvals: Iterable[Approval]
) -> RuleVerdict:
    """`pass` with one approval that counts, otherwise `cannot_say` with the objections to the others."""
    objections = []
    for approval in approvals:
        why_not = objection(usecase, model, submitted_by, approval)
        if why_not is None:
            bound = f"by {approval.by.name}: {approval.reason}"
            return RuleVerdict(rule=RULE, verdict="pass", value=None, bound=bound)
        objections.append(why_not)
    approvers = f"one of {', '.join(usecase.approvers)}" if usecase.approvers else "an approver, but none is declared"
    waits = f"waits for {approvers}: throughline approve {model.reference} --reason TEXT"
    return RuleVerdict(
        rule=RULE, verdict="cannot_say", value=None, bound="; ".join([*dict.fromkeys(objections), waits])
    )
