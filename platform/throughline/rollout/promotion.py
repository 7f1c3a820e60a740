"""Changes of champion: the history, what serves, the endpoint's record and the alias, under one lock, in one function.

Owns: what is checked before a change, the order of its steps. Does not own: the decision to release
(`evaluation/gate.py`), serving a version (`local.py`), the order of champions (`registry/champions.py`).

The history decides; revision file, endpoint record and alias are projections of it. Each step may be repeated, so the
same command completes a change that was interrupted. The alias is written last: while it names a version that was
withdrawn, a rollback is not complete.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from throughline.evaluation.gate import former_champion
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH, Principal
from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord, GateDecision, ModelRecord
from throughline.records.store import find_record, save_record
from throughline.registry import versions as models
from throughline.registry.champions import Line, line_of, rollback_target
from throughline.registry.decisions import newest, released
from throughline.registry.history import append, event_of, events
from throughline.rollout.local import place, refusal, require_release, serve
from throughline.rollout.revision import read_revisions
from throughline.usecase import UseCase


def release(
    settings: Settings, usecase: UseCase, model: ModelRecord, decision: GateDecision, reason: str
) -> EndpointRecord:
    """Serve what the gate released and make it champion, for the graph.

    Raises as `require_release` and `serve` do, and when another version became champion since the evaluation: the
    candidate has to be compared with that one.
    """
    with _champion_lock(settings, usecase):
        line = line_of(events(settings, usecase.name))
        if model.reference in line.former:
            raise ThroughlineError(f"{model.reference} is not deployed: {former_champion(model).bound}.")
        if line.champion not in (None, decision.compared_with, model.reference):
            raise ThroughlineError(
                f"{model.reference} is not deployed: it was compared with {decision.compared_with or 'no champion'}, "
                f"but {line.champion} is champion now; materialise {usecase.name}/evaluation/evaluation again."
            )
        require_release(settings, usecase, model, decision)
        return _make_champion(settings, usecase, line, model, line.champion, GRAPH, reason)


def promote(settings: Settings, usecase: UseCase, model: ModelRecord, who: Principal, reason: str) -> EndpointRecord:
    """Serve a version that the gate released once, and make it champion. Raises `ThroughlineError` when it did not."""
    if not reason.strip():
        raise ThroughlineError(f"{model.reference} is not promoted: give a --reason, it stands in the history.")
    with _champion_lock(settings, usecase):
        decision = released(settings, usecase.name, model)
        if decision is None:
            holds = newest(settings, usecase.name, model.reference)
            why = f"the gate's decision is {holds.decision} ({holds.failures})" if holds else "the gate has not decided"
            raise ThroughlineError(f"{model.reference} is not promoted: {why}.")
        if why_not := refusal(decision, model, decision, usecase.release.policy):
            raise ThroughlineError(f"{model.reference} is not promoted: {why_not}.")
        line = line_of(events(settings, usecase.name))
        return _make_champion(settings, usecase, line, model, line.champion, who.name, reason)


def rollback(settings: Settings, usecase: UseCase, who: Principal, reason: str) -> EndpointRecord:
    """Return to the champion before the current one (see `rollback_target`), from the artifact that it was served from.

    The gate does not decide again; its release of this file must be in the history. Raises `ThroughlineError` when no
    champion is left to return to or its file cannot be fetched; then nothing has changed. When the server does not load
    it, the current version goes on serving, withdrawn, and a repetition completes the rollback.
    """
    with _champion_lock(settings, usecase):
        line = line_of(events(settings, usecase.name))
        serving, alias = _serving(settings, usecase), models.alias(settings, usecase.name)
        target = rollback_target(line, serving, alias)
        if target is None:
            raise ThroughlineError(
                f"{usecase.name} has no champion before {line.champion or serving or 'the first'} to return to: "
                f"`throughline history {usecase.name}` lists them, `throughline promote` serves another version."
            )
        model = models.get(settings, target)
        decision = released(settings, usecase.name, model)
        if decision is None:
            raise ThroughlineError(f"{target} is not served again: the history has no release of its registered file.")
        place(settings, usecase, model)
        left = next((one for one in (serving, alias) if one not in (None, target)), None)
        if left and left not in line.withdrawn:
            append(settings, usecase.name, event_of("withdrawn", left, who.name, old=left, new=target, reason=reason))
        return _make_champion(settings, usecase, line, model, left, who.name, reason)


def restore(settings: Settings, usecase: UseCase, again: bool = False) -> Line:
    """Serve the champion of the history and point the alias at it, where a command was interrupted or an alias moved.

    `again`: also when all agree on it, because the server does not serve it.
    Returns the order of champions. A rollback of which only the withdrawal is recorded is left to its repetition.
    """
    with _champion_lock(settings, usecase):
        line = line_of(events(settings, usecase.name))
        if line.champion is not None and line.champion == line.last:
            endpoint = find_record(settings, _endpoint(usecase), EndpointRecord)
            recorded = endpoint.model if endpoint else None
            if again or {_serving(settings, usecase), recorded, models.alias(settings, usecase.name)} != {
                line.champion
            }:
                _make_champion(settings, usecase, line, models.get(settings, line.champion), None, GRAPH, "")
    return line


def _make_champion(
    settings: Settings,
    usecase: UseCase,
    line: Line,
    model: ModelRecord,
    old: ModelReference | None,
    actor: str,
    reason: str,
) -> EndpointRecord:
    """Serve `model`, record it in the history unless its newest event names it, and write what follows from that.

    Raises as `serve` does; then nothing has changed.
    """
    endpoint = serve(settings, usecase, model)
    if line.last != model.reference or model.reference in line.withdrawn:
        event = event_of("champion", usecase.name, actor, old=old, new=model.reference, reason=reason)
        append(settings, usecase.name, event)
    save_record(settings, _endpoint(usecase), endpoint)
    models.set_alias(settings, model.reference)
    return endpoint


def _endpoint(usecase: UseCase) -> tuple[str, str, str]:
    return usecase.name, "deployment", "endpoint"


def _serving(settings: Settings, usecase: UseCase) -> ModelReference | None:
    try:
        revisions = read_revisions(settings.serving_home / usecase.name)
    except ThroughlineError:
        return None  # a server could not serve it either
    return revisions.stable.model if revisions else None


def _champion_lock(settings: Settings, usecase: UseCase) -> AbstractContextManager[None]:
    """Serialises champion changes on this machine."""
    return locked(settings.home / "locks" / f"champion-{usecase.name}")
