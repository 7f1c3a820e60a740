"""The strategies of a rollout as one state machine. Pure: each transition takes a state and returns the next one.

Owns: the stages of each strategy, when a stage ends, which revisions serve with which role and weight meanwhile.
Does not own: the verdict (`judge.py`), carrying a transition out (`controller.py`).

A rollout passes the stages of its plan. A stage counts from when the target serves it; it ends when its dwell time is
over and the verdict is `advance`. `roll_back` ends the rollout at any time, also a paused one; so does the deadline
when the verdict is not `advance`. Until the end stable is loaded, whatever its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from throughline.records import ModelRecord, Revision, RevisionSet, Sticky
from throughline.rollout.comparison import Reference
from throughline.rollout.judge import Verdict
from throughline.rollout.revision import only
from throughline.rollout.state import POINTS, Outcome, Point, Rollout, Step
from throughline.rollout.target import Capabilities, Served, in_effect
from throughline.usecase.release import AB, BlueGreen, Canary, Direct, Release, ShadowCanary


@dataclass(frozen=True)
class Stage:
    """`share`: of the answers, the candidate's; of a shadow, of the requests that are copied to it."""

    kind: Literal["shadow", "canary", "watch", "split"]
    share: float
    dwell: timedelta
    samples: int

    @property
    def answers(self) -> float:
        """The candidate's share of the answers."""
        return 0.0 if self.kind == "shadow" else self.share

    def __str__(self) -> str:
        return f"{self.kind} {self.share:.0%}"


def stages(plan: Release) -> tuple[Stage, ...]:
    """What a plan passes, in order."""
    match plan:
        case Canary() | ShadowCanary():
            steps = tuple(Stage("canary", share, plan.dwell, plan.samples) for share in plan.steps)
            if isinstance(plan, ShadowCanary):
                return (Stage("shadow", plan.shadow_share, timedelta(), plan.shadow_samples), *steps)
            return steps
        case BlueGreen():
            return Stage("shadow", 1.0, timedelta(), plan.samples), Stage("watch", 1.0, plan.dwell, plan.samples)
        case AB():
            return (Stage("split", plan.share, plan.duration, plan.samples),)
        case Direct():
            return ()


def lacking(plan: Release, capabilities: Capabilities) -> str | None:
    """What the plan needs and a target cannot carry; None when it can."""
    kinds = {stage.kind for stage in stages(plan)}
    needed = {
        "weights": bool(kinds & {"canary", "split"}),
        "sticky": isinstance(plan, AB),
        "mirror": "shadow" in kinds,
    }
    missing = [name for name, needs in needed.items() if needs and not getattr(capabilities, name)]
    return ", ".join(missing) or None


def stage_of(rollout: Rollout) -> Stage:
    """The stage that it is in, or was in when it ended."""
    return stages(rollout.plan)[rollout.stage]


def share_of(rollout: Rollout) -> float:
    """The candidate's share of the answers."""
    if rollout.outcome is not None:
        return 1.0 if rollout.outcome == "promoted" else 0.0
    return stage_of(rollout).answers


def desired(rollout: Rollout) -> RevisionSet:
    """The revisions that are to serve, with their roles and weights."""
    if rollout.outcome is not None:
        return only(_as(rollout.candidate if rollout.outcome == "promoted" else rollout.stable, "stable", 1.0))
    stage = stage_of(rollout)
    return RevisionSet(
        usecase=rollout.usecase,
        revisions=(
            _as(rollout.stable, "stable", 1.0 - stage.answers),
            _as(rollout.candidate, "shadow" if stage.kind == "shadow" else "canary", stage.share),
        ),
        sticky=Sticky(key=rollout.plan.sticky, salt=rollout.rollout) if isinstance(rollout.plan, AB) else None,
    )


def begun(
    rollout: str,
    plan: Release,
    stable: Revision,
    candidate: Revision,
    model: ModelRecord,
    now: datetime,
    *,
    actor: str,
    reason: str,
    reference: Reference,
) -> Rollout:
    """A rollout in the first stage of its plan. `direct` has none: nothing is judged."""
    if isinstance(plan, Direct):
        raise ValueError("a direct release has no stages")
    made = Rollout(
        rollout=rollout, usecase=stable.usecase, plan=plan, stable=stable, candidate=candidate, model=model,
        actor=actor, reason=reason, reference=reference, started_at=now, deadline_at=now + plan.deadline,
    )  # fmt: skip
    return _step(made, now, f"started: {stage_of(made)}", reason)


def stepped(rollout: Rollout, verdict: Verdict, served: Sequence[Served], now: datetime) -> Rollout:
    """After a look. `served`: what the target reports; `verdict`: of the evidence so far."""
    if rollout.outcome is not None:
        return rollout
    rollout = _noted(rollout.model_copy(update={"verdict": verdict, "trouble": ""}), verdict, now)
    reasons = "; ".join(verdict.reasons)
    if verdict.conclusion == "roll_back":
        return decided(rollout, "rolled_back", reasons, now)
    if rollout.paused_at is not None:
        return rollout
    stage = stage_of(rollout)
    if in_effect(desired(rollout), served):
        if rollout.entered_at is None:
            rollout = rollout.model_copy(update={"entered_at": now})
        if verdict.conclusion == "advance" and now - (rollout.entered_at or now) >= stage.dwell:
            return _next(rollout, verdict, now)
    else:
        reasons = f"the target does not serve {stage} yet"
    return expired(rollout, reasons, now)


def expired(rollout: Rollout, reasons: str, now: datetime) -> Rollout:
    """Goes back when the deadline has passed. `reasons`: why it has not advanced."""
    if rollout.outcome is not None or rollout.paused_at is not None or now < rollout.deadline_at:
        return rollout
    return decided(rollout, "rolled_back", f"not shown to be good by the deadline: {reasons}", now)


def paused(rollout: Rollout, who: str, now: datetime) -> Rollout:
    """Shares stay, nothing advances, the deadline waits; a bad candidate still goes back."""
    if rollout.outcome is not None or rollout.paused_at is not None:
        return rollout
    return _step(rollout.model_copy(update={"paused_at": now}), now, "paused", by=who)


def resumed(rollout: Rollout, who: str, now: datetime) -> Rollout:
    """Dwell time and deadline go on where they were."""
    if rollout.outcome is not None or rollout.paused_at is None:
        return rollout
    waited = max(now - rollout.paused_at, timedelta())
    entered = rollout.entered_at and rollout.entered_at + waited
    changes = {"paused_at": None, "entered_at": entered, "deadline_at": rollout.deadline_at + waited}
    return _step(rollout.model_copy(update=changes), now, "resumed", by=who)


def decided(rollout: Rollout, outcome: Outcome, why: str, now: datetime, by: str = "") -> Rollout:
    """With its outcome, which is still to be carried out. The first one stands."""
    if rollout.outcome is not None:
        return rollout
    changed = rollout.model_copy(update={"outcome": outcome, "why": why, "paused_at": None})
    return _step(changed, now, outcome.replace("_", " "), why, by)


def finished(rollout: Rollout, now: datetime) -> Rollout:
    """Its outcome is carried out: this state is final."""
    if rollout.outcome is None or rollout.ended_at is not None:
        return rollout
    return rollout.model_copy(update={"ended_at": now, "look": None, "trouble": ""})


def _next(rollout: Rollout, verdict: Verdict, now: datetime) -> Rollout:
    why = "; ".join(verdict.reasons)
    if isinstance(rollout.plan, AB):
        if verdict.better:
            return decided(rollout, "promoted", f"{rollout.plan.winner}: the candidate is better; {why}", now)
        return decided(rollout, "rolled_back", f"{rollout.plan.winner}: not shown to be better than stable", now)
    if rollout.stage + 1 == len(stages(rollout.plan)):
        return decided(rollout, "promoted", why, now)
    changes = {"stage": rollout.stage + 1, "entered_at": None, "evidence": rollout.evidence.next_step()}
    rollout = rollout.model_copy(update=changes)
    return _step(rollout, now, f"advanced: {stage_of(rollout)}", why)


def _step(rollout: Rollout, now: datetime, what: str, why: str = "", by: str = "") -> Rollout:
    step = Step(at=now, what=what, share=share_of(rollout), why=why, by=by)
    return rollout.model_copy(update={"steps": (*rollout.steps, step)})


def _noted(rollout: Rollout, verdict: Verdict, now: datetime) -> Rollout:
    point = Point(
        at=now,
        share=share_of(rollout),
        requests=rollout.evidence.requests,
        evidence={finding.metric: finding.evidence for finding in verdict.findings},
        conclusion=verdict.conclusion,
    )
    points = (*rollout.points, point)
    return rollout.model_copy(update={"points": points if len(points) <= POINTS else points[::2]})


def _as(revision: Revision, role: Literal["stable", "canary", "shadow"], weight: float) -> Revision:
    return revision.model_copy(update={"role": role, "weight": weight})
