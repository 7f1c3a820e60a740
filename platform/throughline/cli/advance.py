"""`throughline advance`: replay recorded days."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console

from throughline.cli.output import console, emit, follow_run, out
from throughline.foundation.settings import load_settings
from throughline.graph.client import Graph
from throughline.replay.advance import advance_day
from throughline.usecase import get_usecase, load_usecases


def advance(
    days: int = typer.Option(1, "--days", min=1, help="How many days of the recording to replay."),
    usecase: str | None = typer.Option(None, "--usecase", help="One use case; all of them when not given."),
    as_json: bool = typer.Option(False, "--json", help="Print what happened as JSON."),
) -> None:
    """Move the data clock: bring each day's data, predict its flow of requests, let the sensors decide."""
    settings = load_settings()
    graph = Graph(settings)
    chosen = [get_usecase(usecase)] if usecase else list(load_usecases().values())
    days_done: list[dict[str, Any]] = []
    for declared in chosen:
        for _ in range(days):
            done = advance_day(
                settings,
                declared,
                graph,
                follow=lambda run_id: follow_run(graph, settings, run_id, quiet=True),
                report=lambda text: console.print(f"[dim]{text}[/]"),
            )
            judged = done.calibration
            row = {
                "usecase": declared.name,
                "day": done.day.isoformat(),
                "predictions": done.predictions,
                "labelled": done.outcomes.labelled,
                "never_labelled": done.outcomes.never_labelled,
                "model": judged.model,
                "verdict": judged.verdict,
                "gap": judged.gap,
                "reason": judged.reason,
                "retraining": done.retraining,
                "retraining_status": done.retraining_status,
                "seconds": round(done.seconds, 1),
            }
            days_done.append(row)
            _show(row, console if as_json else out())
    emit(as_json, days_done, lambda: None)


def _show(row: dict[str, Any], screen: Console) -> None:
    screen.print(
        f"[bold]{row['usecase']} {row['day']}[/] {row['predictions']} predictions by {row['model']}, "
        f"{row['labelled']} outcomes known, {row['verdict']}: {row['reason']} [dim]{row['seconds']} s[/]"
    )
    if row["retraining"]:
        screen.print(f"  [yellow]retrained[/] ({row['retraining_status']}): {row['retraining']}")
