"""Changes of champion: the history, what serves, the endpoint's record and the alias, under one lock, in one function.

Owns: what is checked before a change, the order of its steps, which changes need a rollout. Does not own: the decision
to release (`evaluation/gate.py`), a target (`local.py`), the steps of a rollout (`controller.py`), the order of
champions (`registry/champions.py`).

The history decides; revision file, endpoint record and alias are projections of it. Each step may be repeated, so the
same command completes a change that was interrupted. The alias is written last: while it names a version that was
withdrawn, a rollback is not complete.
"""

from __future__ import annotations

from datetime import UTC, datetime

from throughline.evaluation.gate import former_champion
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH, Principal
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, GateDecision, ModelRecord
from throughline.records.store import find_record, load_record, save_record
from throughline.registry import versions as models
from throughline.registry.champions import Line, line_of, rollback_target
from throughline.registry.decisions import released
from throughline.registry.history import append, event_of, events
from throughline.rollout.admission import require_release, require_released
from throughline.rollout.local import LocalTarget
from throughline.rollout.revision import only, read_revisions, revision_of
from throughline.rollout.running import champion_lock, give_back, running, save, start
from throughline.rollout.state import Rollout
from throughline.rollout.strategy import decided, finished
from throughline.rollout.target import Target
from throughline.usecase import UseCase


def release(
    settings: Settings,
    usecase: UseCase,
    model: ModelRecord,
    decision: GateDecision,
    reason: str,
    target: Target | None = None,
) -> EndpointRecord | Rollout:
    """Serve what the gate released, for the graph: at once as the first champion, by a rollout beside another one.

    Raises as `require_release` and `start` do, when a rollout of this version ended without a promotion, and when
    another version became champion since the evaluation: the candidate has to be compared with that one.
    """
    target = target or LocalTarget(settings)
    with champion_lock(settings, usecase):
        _under_way(settings, usecase, target)
        line = line_of(events(settings, usecase.name))
        if why_not := not_again(line, model):
            raise ThroughlineError(f"{model.reference} is not deployed: {why_not}.")
        if line.champion not in (None, decision.compared_with, model.reference):
            raise ThroughlineError(
                f"{model.reference} is not deployed: it was compared with {decision.compared_with or 'no champion'}, "
                f"but {line.champion} is champion now; materialise {usecase.name}/evaluation/evaluation again."
            )
        require_release(settings, usecase, model, decision)
        return _deploy(settings, usecase, target, line, model, GRAPH, reason)


def promote(
    settings: Settings,
    usecase: UseCase,
    model: ModelRecord,
    who: Principal,
    reason: str,
    target: Target | None = None,
) -> EndpointRecord | Rollout:
    """As `release`, of a version that the gate released once. Raises `ThroughlineError` when it did not."""
    if not reason.strip():
        raise ThroughlineError(f"{model.reference} is not promoted: give a --reason, it stands in the history.")
    target = target or LocalTarget(settings)
    with champion_lock(settings, usecase):
        require_released(settings, usecase, model)
        _under_way(settings, usecase, target)
        line = line_of(events(settings, usecase.name))
        return _deploy(settings, usecase, target, line, model, who.name, reason)


def complete(settings: Settings, usecase: UseCase, target: Target, rollout: Rollout) -> EndpointRecord:
    """Make the candidate of a rollout champion, as its outcome is. Call it under the lock; repeating it is harmless."""
    line = line_of(events(settings, usecase.name))
    reason = "; ".join(filter(None, [rollout.reason, f"rollout {rollout.plan.strategy}: {rollout.why}"]))
    return _make_champion(settings, usecase, target, line, rollout.model, line.champion, rollout.actor, reason)


def carry_out(settings: Settings, usecase: UseCase, target: Target, rollout: Rollout, now: datetime) -> Rollout:
    """Make the outcome of a rollout so: its final state. Call it under the lock; repeating it is harmless.

    Raises when the target does not follow: that is noted in the state, and left to the next call.
    """
    try:
        if rollout.outcome != "promoted":
            return give_back(settings, target, rollout, now)
        complete(settings, usecase, target, rollout)
    except ThroughlineError as error:
        save(settings, rollout.model_copy(update={"trouble": str(error)}))
        raise
    return save(settings, finished(rollout, now))


def not_again(line: Line, model: ModelRecord) -> str | None:
    """Why the graph does not deploy a version that was deployed before; None when it does."""
    reference = model.reference
    if reference in line.former:
        return former_champion(model).bound
    if reference in line.returned:
        return f"its rollout was rolled back or aborted; `throughline promote {reference}` starts another"
    return None


def rollback(
    settings: Settings, usecase: UseCase, who: Principal, reason: str, target: Target | None = None
) -> EndpointRecord:
    """Return to the champion before the current one (see `rollback_target`), from the artifact that it was served from.
    While a rollout is under way, return to its stable version instead: that is aborted.

    The gate does not decide again; its release of this file must be in the history. Raises `ThroughlineError` when no
    champion is left to return to or its file cannot be fetched; then nothing has changed. When the server does not load
    it, the current version goes on serving, withdrawn, and a repetition completes the rollback.
    """
    target = target or LocalTarget(settings)
    with champion_lock(settings, usecase):
        if (rollout := _under_way(settings, usecase, target)) is not None:
            now = datetime.now(UTC)
            aborted = save(settings, decided(rollout, "aborted", reason, now, by=who.name))
            carry_out(settings, usecase, target, aborted, now)
            return load_record(settings, _endpoint(usecase), EndpointRecord)
        line = line_of(events(settings, usecase.name))
        serving, alias = _serving(settings, usecase), models.alias(settings, usecase.name)
        former = rollback_target(line, serving, alias)
        if former is None:
            raise ThroughlineError(
                f"{usecase.name} has no champion before {line.champion or serving or 'the first'} to return to: "
                f"`throughline history {usecase.name}` lists them, `throughline promote` serves another version."
            )
        model = models.get(settings, former)
        decision = released(settings, usecase.name, model)
        if decision is None:
            raise ThroughlineError(f"{former} is not served again: the history has no release of its registered file.")
        target.place(usecase, model)
        left = next((one for one in (serving, alias) if one not in (None, former)), None)
        if left and left not in line.withdrawn:
            append(settings, usecase.name, event_of("withdrawn", left, who.name, old=left, new=former, reason=reason))
        return _make_champion(settings, usecase, target, line, model, left, who.name, reason)


def restore(settings: Settings, usecase: UseCase, again: bool = False, target: Target | None = None) -> Line:
    """Serve the champion of the history and point the alias at it, where a command was interrupted or an alias moved.

    `again`: also when all agree on it, because the server does not serve it.
    Returns the order of champions. A rollback of which only the withdrawal is recorded is left to its repetition, and
    what serves is left to a rollout that is under way.
    """
    target = target or LocalTarget(settings)
    with champion_lock(settings, usecase):
        line = line_of(events(settings, usecase.name))
        if line.champion is not None and line.champion == line.last and running(settings, usecase) is None:
            endpoint = find_record(settings, _endpoint(usecase), EndpointRecord)
            recorded = endpoint.model if endpoint else None
            everywhere = {_serving(settings, usecase), recorded, models.alias(settings, usecase.name)}
            if again or everywhere != {line.champion}:
                model = models.get(settings, line.champion)
                _make_champion(settings, usecase, target, line, model, None, GRAPH, "")
    return line


def _under_way(settings: Settings, usecase: UseCase, target: Target) -> Rollout | None:
    """The rollout under way, still without an outcome: of an interrupted one with an outcome, that is carried out."""
    rollout = running(settings, usecase)
    if rollout is None or rollout.outcome is None:
        return rollout
    carry_out(settings, usecase, target, rollout, datetime.now(UTC))
    return None


def _deploy(
    settings: Settings, usecase: UseCase, target: Target, line: Line, model: ModelRecord, actor: str, reason: str
) -> EndpointRecord | Rollout:
    """The first champion, and the current one again, at once; another one by a rollout."""
    if line.champion is None or line.champion == model.reference:
        return _make_champion(settings, usecase, target, line, model, line.champion, actor, reason)
    return start(settings, usecase, target, line.champion, model, actor, reason)


def _make_champion(
    settings: Settings,
    usecase: UseCase,
    target: Target,
    line: Line,
    model: ModelRecord,
    old: ModelReference | None,
    actor: str,
    reason: str,
) -> EndpointRecord:
    """Serve `model`, record it in the history unless its newest event names it, and write what follows from that.

    Raises as `serve` does; then nothing has changed.
    """
    endpoint = serve(target, usecase, model)
    if line.last != model.reference or model.reference in line.withdrawn:
        event = event_of("champion", usecase.name, actor, old=old, new=model.reference, reason=reason)
        append(settings, usecase.name, event)
    save_record(settings, _endpoint(usecase), endpoint)
    models.set_alias(settings, model.reference)
    return endpoint


def serve(target: Target, usecase: UseCase, model: ModelRecord) -> EndpointRecord:
    """Serve `model` alone; the caller has checked its release. Repeating it is harmless.

    Wall clock. Raises `ThroughlineError` when the target refuses: what served before stays.
    """
    if model.name != usecase.name:
        raise ThroughlineError(f"{model.reference} is not deployed: it is not a model of {usecase.name}.")
    revision = revision_of(usecase.name, model, datetime.now(UTC))
    target.place(usecase, model)
    target.apply(only(revision))
    return EndpointRecord(
        usecase=usecase.name,
        model=model.reference,
        sha256=model.sha256,
        revision=revision.revision,
        address=target.address(usecase.name),
        deployed_at=revision.deployed_at,
    )


def _endpoint(usecase: UseCase) -> tuple[str, str, str]:
    return usecase.name, "deployment", "endpoint"


def _serving(settings: Settings, usecase: UseCase) -> ModelReference | None:
    try:
        revisions = read_revisions(settings.serving_home / usecase.name)
    except ThroughlineError:
        return None  # a server could not serve it either
    return revisions.stable.model if revisions else None
