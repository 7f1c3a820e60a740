"""Who is champion: the one place where what serves, the history and the alias change together.

Owns: the order of these steps, and whom a rollback returns to. Does not own: the decision to release (`evaluation`),
how a version is served (`local.py`), the alias (`registry/versions.py`).

The history decides, the alias follows. A step that breaks off is completed by the same command: each step may be
repeated, what is meant is told before anything changes, and the alias, by which a repetition sees that something was
left undone, moves last.
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
from throughline.records.store import save_record
from throughline.registry.champions import Line, line_of, rollback_target
from throughline.registry.decisions import newest, released
from throughline.registry.history import event_of, events, tell
from throughline.rollout.local import deploy, place, refusal, serve
from throughline.rollout.revision import read_revision
from throughline.usecase import UseCase


def release(
    settings: Settings, usecase: UseCase, model: ModelRecord, decision: GateDecision, reason: str
) -> EndpointRecord:
    """Serve what the gate released and make it champion; the graph does. Raises as `deploy` does, and when somebody
    else became champion since the evaluation: of two candidates at once the second has to be compared with the first.
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
        endpoint = deploy(settings, usecase, model, decision)
        _crown(settings, usecase, line, model, endpoint, line.champion, GRAPH, reason)
    return endpoint


def promote(settings: Settings, usecase: UseCase, model: ModelRecord, who: Principal, reason: str) -> EndpointRecord:
    """Serve a version that the gate released once, and make it champion. Raises `ThroughlineError` when it did not."""
    if not reason.strip():
        raise ThroughlineError(f"{model.reference} is not promoted: give a --reason, it stands in the history.")
    with _champion_lock(settings, usecase):
        decision = released(settings, usecase.name, model)
        if decision is None:
            holds = newest(settings, usecase.name, model.reference)
            said = f"the gate says {holds.decision} ({holds.failures})" if holds else "the gate never decided about it"
            raise ThroughlineError(f"{model.reference} is not promoted: {said}.")
        if why_not := refusal(decision, model, decision, usecase.release.policy):
            raise ThroughlineError(f"{model.reference} is not promoted: {why_not}.")
        line = line_of(events(settings, usecase.name))
        endpoint = serve(settings, usecase, model)
        _crown(settings, usecase, line, model, endpoint, line.champion, who.name, reason)
    return endpoint


def rollback(settings: Settings, usecase: UseCase, who: Principal, reason: str) -> EndpointRecord:
    """Return to the champion before the current one (see `rollback_target`), from the artifact that it was served from.

    The gate is not asked again: it released this very file before, which is checked. Raises `ThroughlineError` when
    there is no champion to return to or its file cannot be had; then nothing has changed. When the server does not
    load it, the current one goes on serving, withdrawn, and a repetition completes the rollback.
    """
    from throughline.registry import versions as models

    with _champion_lock(settings, usecase):
        line = line_of(events(settings, usecase.name))
        serving, current = _serving(settings, usecase), models.champion(settings, usecase.name)
        alias = current.reference if current else None
        target = rollback_target(line, serving, alias)
        if target is None:
            raise ThroughlineError(
                f"{usecase.name} has no champion before {line.champion or serving or 'the first'} to return to: "
                f"`throughline history {usecase.name}` shows who was, `throughline promote` takes another."
            )
        model = models.get(settings, target)
        decision = released(settings, usecase.name, model)
        if decision is None:
            raise ThroughlineError(f"{target} is not served again: the history has no release of its registered file.")
        place(settings, usecase, model)
        left = next((one for one in (serving, alias) if one not in (None, target)), None)
        if left and left not in line.withdrawn:
            tell(settings, usecase.name, event_of("withdrawn", left, who.name, old=left, new=target, reason=reason))
        endpoint = serve(settings, usecase, model)
        _crown(settings, usecase, line, model, endpoint, left, who.name, reason)
    return endpoint


def settle(settings: Settings, usecase: UseCase) -> Line:
    """Point the alias at the champion by the history, where something that broke off left it elsewhere."""
    from throughline.registry import versions as models

    line = line_of(events(settings, usecase.name))
    if line.champion is not None:
        now = models.champion(settings, usecase.name)
        if now is None or now.reference != line.champion:
            models.set_champion(settings, models.get(settings, line.champion))
    return line


def _crown(
    settings: Settings,
    usecase: UseCase,
    line: Line,
    model: ModelRecord,
    endpoint: EndpointRecord,
    old: ModelReference | None,
    actor: str,
    reason: str,
) -> None:
    from throughline.registry.versions import set_champion

    save_record(settings, (usecase.name, "deployment", "endpoint"), endpoint)
    if line.told != model.reference or model.reference in line.withdrawn:
        event = event_of("champion", usecase.name, actor, old=old, new=model.reference, reason=reason)
        tell(settings, usecase.name, event)
    set_champion(settings, model)


def _serving(settings: Settings, usecase: UseCase) -> ModelReference | None:
    try:
        revision = read_revision(settings.serving_home / usecase.name)
    except ThroughlineError:
        return None  # a server that starts could not serve it
    return revision.model if revision else None


def _champion_lock(settings: Settings, usecase: UseCase) -> AbstractContextManager[None]:
    """Serialises champion changes on this machine."""
    return locked(settings.home / "locks" / f"champion-{usecase.name}")
