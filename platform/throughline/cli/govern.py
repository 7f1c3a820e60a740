"""`throughline propose | approve | promote | rollback | history | note`: releases, and the history of model versions.

Owns: options, tables, JSON. Does not own: who may approve what (`registry/approval.py`), the change of champion
(`rollout/promotion.py`), the history (`registry/history.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from throughline.cli.arguments import AsJson, Model, UseCaseName, parse_model
from throughline.cli.output import columns, emit, follow_run, out
from throughline.cli.rollout import follow_rollout
from throughline.evaluation.gate import MAX_AGE
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import Settings, load_settings
from throughline.foundation.tags import CAUSE
from throughline.graph.client import Graph
from throughline.records import EndpointRecord, EvaluationRecord, GateDecision, HistoryEvent, ModelRecord
from throughline.records.store import find_record, load_record
from throughline.registry import decisions
from throughline.registry import versions as models
from throughline.registry.history import append, change, concerning, event_of, events
from throughline.rollout import promotion
from throughline.rollout.picture import fields_of, headline, state_of
from throughline.rollout.state import Rollout, read_rollout
from throughline.usecase import UseCase, get_usecase, load_usecases

Wait = Annotated[bool, typer.Option(help="Stay until the rollout has ended.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the history.")]


def propose(model: Model, wait: Wait = True, as_json: AsJson = False) -> None:
    """Evaluate a registered version, let the gate decide, and roll it out when every rule passes."""
    settings = load_settings()
    usecase, record = _registered(settings, model)
    dataset = models.dataset_tables(settings, model.name)[model]
    graph = Graph(settings)
    rooms = ("training/dataset", "training/model", "evaluation/evaluation", "evaluation/gate", "evaluation/card")
    assets = [(usecase.name, *key.split("/")) for key in (*rooms, "deployment/endpoint")]
    ops = {
        f"{usecase.name}__training__dataset": {"config": {"table": str(dataset)}},
        f"{usecase.name}__training__model": {"config": {"candidate": str(model)}},
    }
    run_id = graph.launch(assets, config={"ops": ops}, tags={CAUSE: f"{model} was proposed"})
    outcome = follow_run(graph, settings, run_id, quiet=as_json)
    if not outcome.succeeded:
        raise ThroughlineError(f"{model} was not decided about: {outcome.cause}")
    gate = find_record(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    if gate is None or gate.model != model or gate.decision == "reject":
        raise ThroughlineError(f"{model} is not released: {gate.failures if gate else 'there is no decision'}.")
    if wait and gate.decision == "release":
        rolled_out(settings, usecase, record, as_json)
    rules = gate.model_dump(mode="json")["rules"]
    result = {"model": str(model), "run": run_id, "decision": gate.decision, "rules": rules}
    waits = f", it waits for approval: throughline approve {model} --reason TEXT" if gate.decision == "wait" else ""
    emit(as_json, result, lambda: out().print(f"[bold]{model}[/]: {gate.decision}{waits}"))


def approve(
    model: Model,
    reason: Reason,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Approve a version that the gate lets through and the policy holds back; then it is released."""
    settings = load_settings()
    usecase, record = _registered(settings, model)
    candidate = find_record(settings, (usecase.name, "training", "model"), ModelRecord)
    if candidate is None or candidate.reference != record.reference:
        raise ThroughlineError(
            f"{model} is not the candidate of {usecase.name}, {candidate.reference if candidate else 'nothing'} is: "
            "approve that one, or train again."
        )
    event = decisions.approve(settings, usecase, record, current_principal(settings), reason)
    result = {"model": str(model), "sha256": record.sha256, "approved_by": event.actor, "reason": reason}
    graph = Graph(settings)
    try:
        run_id = graph.launch(_assets_to_release(settings, usecase))
    except ThroughlineError as error:
        hint = f"not released yet: {error} Repeat the command when Dagster runs."
        emit(as_json, {**result, "run": None, "note": hint}, lambda: out().print(f"{model} is approved, {hint}"))
        return
    if not wait:
        line = f"{model} is approved, run {run_id} releases it: {settings.url('dagster')}/runs/{run_id}"
        emit(as_json, {**result, "run": run_id}, lambda: out().print(line))
        return
    outcome = follow_run(graph, settings, run_id, quiet=as_json)
    gate = find_record(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    if outcome.succeeded and gate is not None and (gate.model, gate.decision) == (model, "release"):
        rolled_out(settings, usecase, record, as_json)
    endpoint = find_record(settings, (usecase.name, "deployment", "endpoint"), EndpointRecord)
    if not outcome.succeeded or endpoint is None or endpoint.model != model:
        decision = f"the gate's decision is {gate.decision}: {gate.failures}" if gate else ""
        why = outcome.cause if outcome.errors or not decision else decision
        raise ThroughlineError(f"{model} is approved and was not released: {why}.")
    serves = endpoint.model_dump(mode="json")
    emit(as_json, {**result, "run": run_id, "endpoint": serves}, lambda: _show_endpoint(endpoint))


def promote(model: Model, reason: Reason, wait: Wait = True, as_json: AsJson = False) -> None:
    """Roll out a version that the gate released once; it is champion when the evidence lets it."""
    settings = load_settings()
    usecase, record = _registered(settings, model)
    started = promotion.promote(settings, usecase, record, current_principal(settings), reason)
    if isinstance(started, Rollout) and not wait:
        emit(as_json, fields_of(started), lambda: out().print(escape(headline(started, datetime.now(UTC)))))
        return
    endpoint = started if isinstance(started, EndpointRecord) else rolled_out(settings, usecase, record, as_json)
    emit(as_json, endpoint.model_dump(mode="json"), lambda: _show_endpoint(endpoint))


def rollback(name: UseCaseName, reason: Reason = "", as_json: AsJson = False) -> None:
    """Return to the champion before the current one; again, to the one before that."""
    settings, usecase = load_settings(), get_usecase(name)
    endpoint = promotion.rollback(settings, usecase, current_principal(settings), reason)
    emit(as_json, endpoint.model_dump(mode="json"), lambda: _show_endpoint(endpoint))


def history(
    target: Annotated[str | None, typer.Argument(metavar="[NAME[/VERSION]]", help="All when none is named.")] = None,
    as_json: AsJson = False,
) -> None:
    """What was done to model versions, by whom and why; oldest first."""
    settings = load_settings()
    model = parse_model(target) if target and "/" in target else None
    usecases = [get_usecase(model.name if model else target)] if target else list(load_usecases().values())
    found = [(usecase, event) for usecase in usecases for event in events(settings, usecase.name)]
    if model:
        found = [(usecases[0], event) for event in concerning((event for _, event in found), model)]
    found.sort(key=lambda one: one[1].at)
    result = [{"usecase": usecase.name, **event.model_dump(mode="json")} for usecase, event in found]
    emit(as_json, result, lambda: _show_events(found))


def note(
    target: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="A use case or a registered version.")],
    text: Annotated[str, typer.Argument(help="What should be known of it.")],
    as_json: AsJson = False,
) -> None:
    """Add a note to the history; it shows on the version's card."""
    if not text.strip():
        raise typer.BadParameter("the note is empty")
    settings = load_settings()
    usecase = _registered(settings, parse_model(target))[0] if "/" in target else get_usecase(target)
    event = event_of("note", target, current_principal(settings).name, reason=text)
    append(settings, usecase.name, event)
    emit(as_json, event.model_dump(mode="json"), lambda: out().print(f"noted on {target}"))


def rolled_out(settings: Settings, usecase: UseCase, model: ModelRecord, quiet: bool = False) -> EndpointRecord:
    """The endpoint once `model` is champion: at once, or after its rollout. Raises when that ended otherwise."""
    rollout = follow_rollout(settings, usecase, quiet) or read_rollout(settings, usecase.name)
    if rollout is not None and rollout.model.reference == model.reference and rollout.outcome != "promoted":
        raise ThroughlineError(
            f"{model.reference} was not promoted: {state_of(rollout)}, {rollout.why} "
            f"(`throughline rollout show {usecase.name}`)."
        )
    return load_record(settings, (usecase.name, "deployment", "endpoint"), EndpointRecord)


def local_time(at: datetime, usecase: UseCase) -> str:
    return f"{at.astimezone(usecase.zone):%Y-%m-%d %H:%M:%S %Z}"


def _registered(settings: Settings, model: ModelReference) -> tuple[UseCase, ModelRecord]:
    return get_usecase(model.name), models.get(settings, model)


def _assets_to_release(settings: Settings, usecase: UseCase) -> list[tuple[str, str, str]]:
    """Gate, card and endpoint; the evaluation before them when the gate would soon find it stale: people take days."""
    rooms = (("evaluation", "gate"), ("evaluation", "card"), ("deployment", "endpoint"))
    assets = [(usecase.name, *key) for key in rooms]
    evaluation = find_record(settings, (usecase.name, "evaluation", "evaluation"), EvaluationRecord)
    if evaluation is None or datetime.now(UTC) - evaluation.evaluated_at > MAX_AGE / 2:
        assets.insert(0, (usecase.name, "evaluation", "evaluation"))
    return assets


def _show_endpoint(endpoint: EndpointRecord) -> None:
    out().print(f"[bold]{endpoint.model}[/] serves at {endpoint.address} (revision {endpoint.revision})")


def _show_events(found: list[tuple[UseCase, HistoryEvent]]) -> None:
    if not found:
        out().print("no event is recorded yet")
        return
    table = columns("when", "who", "what, and why", wrapped=("what, and why",))
    for usecase, event in found:
        what = escape(f"{event.action} {event.target}  {change(event)}".rstrip())
        why = f"\n[dim]{escape(event.reason)}[/]" if event.reason else ""
        table.add_row(local_time(event.at, usecase), escape(event.actor), what + why)
    out().print(table)
