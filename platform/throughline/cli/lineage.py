"""`throughline trace PREDICTION_ID` and `throughline impact TABLE@VERSION`: lineage, backwards and forwards.

Owns: tables on the terminal, and the JSON of `--json`:
    trace   a list of steps in order, each with kind, id, version and missing (why it could not be had, or null):
            prediction (time, request, score, decision, features: name, value, view, event_time, table, upstream,
            missing or note), revision (role, share, share_of, champion_since), model_version (sha256,
            dataset_fingerprint, trainer, parameters), gate_decision (decision, rules, approved_by), run (status,
            cause), dataset (fingerprint, rows, as_of, made_from), feature_table (used_for, made_from; where served
            from, view, entity, event_time, matches, raw: table, columns, known_from, known_before, of, rows),
            raw_table (used_for, partitions: first, last, count), code (id: the commit; version: its fingerprint)
    impact  one object: table, feature_tables, datasets, models (null: unknown, then models_unknown is the reason),
            predictions per model, served_from, log, log_lost
Does not own: how these are found (`throughline.lineage`).
"""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from throughline.cli.arguments import AsJson, PredictionId, Table
from throughline.cli.output import columns, emit, fields, listed, out
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import load_settings
from throughline.lineage.impact import Impact
from throughline.lineage.impact import impact as impact_of
from throughline.lineage.trace import Step, Trace, Tracer
from throughline.usecase import load_usecases


def trace(
    prediction_id: PredictionId,
    feature: str | None = typer.Option(None, "--feature", help="Only this feature, with the raw rows behind it."),
    rows: int = typer.Option(20, "--rows", min=1, help="At most so many raw rows per table, the newest first."),
    as_json: AsJson = False,
) -> None:
    """Follow a logged prediction back to the rows, the code and the decision that it came from."""
    found = _traced(prediction_id, rows)
    if feature is None:
        emit(as_json, [step.to_json() for step in found.steps], lambda: _show(found))
        return
    value = _value_of(found, feature)
    emit(as_json, value, lambda: _show_value(value))


def impact(pinned: Table, as_json: AsJson = False) -> None:
    """Follow a table version forward: which features, datasets, models and live predictions it reached."""
    found = impact_of(load_settings(), pinned)
    emit(as_json, found.model_dump(mode="json"), lambda: _show_impact(found))


def _traced(prediction_id: str, rows: int) -> Trace:
    """By whichever use case logged it."""
    settings, problems = load_settings(), []
    for usecase in load_usecases().values():
        try:
            return Tracer(settings, usecase, raw_rows=rows).trace(prediction_id)
        except ThroughlineError as error:
            problems.append(str(error))
    raise ThroughlineError(" ".join(problems))


def _value_of(found: Trace, name: str) -> dict[str, Any]:
    """One feature of the prediction, and of the raw rows behind its table's row those columns that decide it."""
    features = {feature["name"]: feature for feature in found.of("prediction")[0].to_json()["features"]}
    if name not in features:
        raise ThroughlineError(f"The prediction has no feature {name}: it has {', '.join(features)}.")
    feature = features[name]
    steps = [step.to_json() for step in found.of("feature_table") if step.facts.get("view") == feature["view"]]
    decisive = {source.partition(".")[0] for source in feature["upstream"] or ()}
    raw = [part for step in steps for part in step["raw"] if TableReference.parse(part["table"]).name in decisive]
    return {**feature, "raw": raw}


# On the terminal


def _show(found: Trace) -> None:
    table = columns("step", "id", "version", "", wrapped=("id", ""))
    for step in found.steps:
        version = "" if step.version is None else str(step.version)[:12]
        summary = f"missing: {step.missing}" if step.missing else _summary(step)
        cells = (step.kind.replace("_", " "), step.id or "", version, summary)
        table.add_row(*map(escape, cells), style="yellow" if step.missing else None)
    out().print(table)
    if found.gaps:
        out().print(f"[yellow]{len(found.gaps)} of {len(found.steps)} steps are incomplete.[/]")


def _summary(step: Step) -> str:
    """The gist of a step, in a few words."""
    it = step.to_json()
    if step.kind == "prediction":
        incomplete = f", the log lacks {it['log']['lost']} events" if it["log"]["lost"] else ""
        return f"{it['decision']} {it['score']:.4f} at {it['time']}{incomplete}"
    if step.kind == "revision":
        share = "" if it["share"] is None else f", {it['share']:.0%} of {it['share_of']['predictions']} that hour"
        return f"{it['role']}{share}"
    if step.kind == "model_version":
        return f"{it['trainer']}, registered {it['registered_at']}"
    if step.kind == "gate_decision":
        by = ", ".join(approval["actor"] for approval in it["approved_by"])
        return f"{it['decision']} at {it['decided_at']}" + (f", approved by {by}" if by else "")
    if step.kind == "run":
        return " · ".join(filter(None, (it["status"], it["cause"])))
    if step.kind == "dataset":
        return f"{it['rows']:,} rows as of {it['as_of']}, {it['fingerprint'][:12]}"
    if step.kind == "feature_table":
        entity = ", ".join(map(str, it.get("entity", {}).values()))
        return " and ".join(it["used_for"]) + (f": {entity} at {it['event_time']}" if entity else "")
    if step.kind == "raw_table":
        spans = (f"{use} {days['first']} to {days['last']}" if days else use for use, days in it["partitions"].items())
        return "; ".join(spans)
    return f"lock {(it['lock'] or 'unknown')[:12]}"


def _show_value(value: dict[str, Any]) -> None:
    screen = out()
    where = value["table"] or value.get("note") or value.get("missing") or ""
    happened = f" of {value['event_time']}" if value["event_time"] else ""
    screen.print(f"[bold]{escape(value['name'])}[/] {escape(str(value['value']))}{happened}  [dim]{escape(where)}[/]")
    for part in value["raw"]:
        screen.print(f"\n{escape(part['table'])}  [dim]{len(part['rows'])} of {part['of']:,} rows that it could see[/]")
        table = columns(*(part["rows"][0] if part["rows"] else ()))
        for row in part["rows"]:
            table.add_row(*("" if cell is None else escape(str(cell)) for cell in row.values()))
        screen.print(table)


def _show_impact(found: Impact) -> None:
    lacks = f", which lacks {found.log_lost:,} events" if found.log_lost else ""
    lines = {
        "feature tables": listed(found.feature_tables),
        "datasets": listed(found.datasets),
        "models": listed(found.models, found.models_unknown),
        "their predictions": listed(f"{model}: {count:,}" for model, count in found.predictions.items()),
        "served from it": f"{found.served_from:,} predictions",
        "counted in": f"{found.log or 'nothing was logged yet'}{lacks}",
    }
    out().print(f"[bold]{escape(str(found.table))}[/]")
    out().print(fields(lines))
