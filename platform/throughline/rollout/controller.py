"""The controller of rollouts: one look at a time, which may be the last one before a crash.

Owns: the order within a look, pausing, resuming and aborting. Does not own: the verdict (`judge.py`), the transitions
(`strategy.py`), a change of champion (`promotion.py`), who looks and when (`assets/`, `cli/`).

State is written before the target is changed, and each look compares what the target reports with what is to serve. So
a look that was interrupted anywhere is completed by the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from throughline.foundation.clock import Clock, WallClock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import Principal
from throughline.foundation.settings import Settings
from throughline.rollout.evidence import Counts, Window
from throughline.rollout.judge import observed, verdict
from throughline.rollout.local import LocalTarget
from throughline.rollout.promotion import carry_out
from throughline.rollout.running import champion_lock, running, save
from throughline.rollout.state import Rollout, read_rollout
from throughline.rollout.strategy import decided, desired, expired, paused, resumed, stage_of, stepped
from throughline.rollout.target import PRODUCTION, SHADOW, Look, Refused, Target, in_effect
from throughline.rollout.thin_traffic import is_thin, recent_requests
from throughline.usecase import UseCase
from throughline.usecase.release import Direct, Judge

WALL = WallClock()
LOOK_S = 1.0  # between two looks of who waits for the end


def tick(settings: Settings, usecase: UseCase, target: Target | None = None, clock: Clock = WALL) -> Rollout | None:
    """Look once at the rollout of a use case and do what follows; its state, None when there never was one.

    `clock`: the wall clock. A target that does not answer is noted in the state; only an outcome that cannot be
    carried out raises, and is tried again by the next look.
    """
    target = target or LocalTarget(settings)
    with champion_lock(settings, usecase):
        rollout = read_rollout(settings, usecase.name)
        if rollout is None or not rollout.running:
            return rollout
        if rollout.outcome is None:
            rollout = save(settings, _looked(usecase, target, rollout, clock.now()))
        if rollout.outcome is not None:
            return carry_out(settings, usecase, target, rollout, clock.now())
        return _replayed(settings, usecase, target, rollout)


def follow(settings: Settings, usecase: UseCase, report: Callable[[Rollout], None]) -> Rollout | None:
    """Look until the rollout that is under way has ended; `report` gets each state. None when none is under way.

    Others may look meanwhile. Raises as `tick` does.
    """
    if running(settings, usecase) is None:
        return None
    while True:
        rollout = tick(settings, usecase)
        if rollout is None:
            return None
        report(rollout)
        if not rollout.running:
            return rollout
        time.sleep(LOOK_S)


def pause(settings: Settings, usecase: UseCase, who: Principal, clock: Clock = WALL) -> Rollout:
    """Keep the shares as they are until `resume`. Raises when no rollout is under way or it is paused already."""
    return _changed(settings, usecase, "paused", lambda rollout: paused(rollout, who.name, clock.now()))


def resume(settings: Settings, usecase: UseCase, who: Principal, clock: Clock = WALL) -> Rollout:
    """Go on after a pause. Raises when no rollout is under way or it is not paused."""
    return _changed(settings, usecase, "resumed", lambda rollout: resumed(rollout, who.name, clock.now()))


def abort(
    settings: Settings,
    usecase: UseCase,
    who: Principal,
    reason: str,
    target: Target | None = None,
    clock: Clock = WALL,
) -> Rollout:
    """Return to stable now. Raises when no rollout is under way, or the target does not follow (then repeat it)."""
    with champion_lock(settings, usecase):
        rollout = _under_way(settings, usecase)
        changed = save(settings, decided(rollout, "aborted", reason, clock.now(), by=who.name))
        return carry_out(settings, usecase, target or LocalTarget(settings), changed, clock.now())


def _changed(settings: Settings, usecase: UseCase, what: str, change: Callable[[Rollout], Rollout]) -> Rollout:
    with champion_lock(settings, usecase):
        rollout = _under_way(settings, usecase)
        changed = change(rollout)
        if changed == rollout:
            state = rollout.outcome or ("paused" if rollout.paused_at else "not paused")
            raise ThroughlineError(f"The rollout of {rollout.model.reference} is not {what}: it is {state} already.")
        return save(settings, changed)


def _under_way(settings: Settings, usecase: UseCase) -> Rollout:
    rollout = running(settings, usecase)
    if rollout is None:
        raise ThroughlineError(
            f"No rollout of {usecase.name} is under way: `throughline rollout show {usecase.name}` shows the last one."
        )
    return rollout


def _looked(usecase: UseCase, target: Target, rollout: Rollout, now: datetime) -> Rollout:
    """The state after one look; without an outcome yet it may have a new stage, which the next look has served."""
    try:
        if not in_effect(desired(rollout), target.observe(usecase.name)):
            target.apply(desired(rollout))
        rollout = with_evidence(rollout, target.evidence(usecase.name))
        served = target.observe(usecase.name)
    except Refused as refused:
        return decided(rollout, "rolled_back", f"it cannot be served: {refused}", now)
    except ThroughlineError as error:
        return expired(rollout.model_copy(update={"trouble": str(error)}), str(error), now)
    found = verdict(rollout.evidence, _judge(rollout), stage_of(rollout).samples)
    return stepped(rollout, found, served, now)


def with_evidence(rollout: Rollout, look: Look) -> Rollout:
    """With what both revisions did since the look before. Pure."""
    before = rollout.look or look
    evidence = rollout.evidence.model_copy(update={"fault": None})
    faults = []
    for window in windows(rollout, before, look):
        evidence = observed(evidence, window, _judge(rollout), rollout.reference)
        if evidence.fault:
            faults.append(evidence.fault)
    if faults:
        evidence = evidence.model_copy(update={"fault": faults[0]})
    stage, since = stage_of(rollout), look.at - before.at
    live = rollout.stable if stage.kind == "shadow" else rollout.candidate
    seen = look.of(live.revision, PRODUCTION).requests - before.of(live.revision, PRODUCTION).requests
    thin = is_thin(seen * (stage.share if stage.kind == "shadow" else 1), since, stage.dwell, stage.samples)
    return rollout.model_copy(update={"evidence": evidence, "look": look, "thin": thin})


def windows(rollout: Rollout, before: Look, now: Look) -> list[Window]:
    """What is compared of the time between two looks: live with live requests, replayed with replayed ones.

    A shadow gets copies of stable's live requests, with which its replayed ones are counted; they are few then.
    """
    if stage_of(rollout).kind == "shadow":
        classes = [((PRODUCTION, SHADOW), (SHADOW,), bool(rollout.replays))]
    else:
        classes = [((PRODUCTION,), (PRODUCTION,), False), ((SHADOW,), (SHADOW,), True)]
    found = [
        Window(
            start=before.at,
            end=now.at,
            latency_bounds=now.latency_bounds,
            stable=now.of(rollout.stable.revision, *of_stable).minus(before.of(rollout.stable.revision, *of_stable)),
            candidate=now.of(rollout.candidate.revision, *of_its).minus(before.of(rollout.candidate.revision, *of_its)),
            replayed=replayed,
        )
        for of_stable, of_its, replayed in classes
    ]
    return [window for window in found if window.stable != Counts() or window.candidate != Counts()]


def _replayed(settings: Settings, usecase: UseCase, target: Target, rollout: Rollout) -> Rollout:
    """Send logged requests to both revisions where live ones are few, for the next look to find."""
    if rollout.paused_at is not None or not rollout.thin:
        return save(settings, rollout.model_copy(update={"replays": ""})) if rollout.replays else rollout
    try:
        instances, source = recent_requests(settings, usecase)
        rollout = save(settings, rollout.model_copy(update={"replays": source}))
        target.replay(usecase.name, (rollout.stable.revision, rollout.candidate.revision), instances)
    except ThroughlineError as error:
        return save(settings, rollout.model_copy(update={"trouble": str(error)}))
    return rollout


def _judge(rollout: Rollout) -> Judge:
    assert not isinstance(rollout.plan, Direct), "a direct release has no rollout"
    return rollout.plan.judge
