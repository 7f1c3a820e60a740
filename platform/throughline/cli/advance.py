"""`throughline advance`: replay recorded days."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from throughline.cli.arguments import AsJson, OneUseCase
from throughline.cli.output import console, emit, follow_run, out
from throughline.foundation.settings import load_settings
from throughline.graph.client import Graph
from throughline.replay.advance import advance_day
from throughline.usecase import get_usecase, load_usecases


def advance(
    days: Annotated[int, typer.Option(min=1, help="How many days of the recording to replay.")] = 1,
    usecase: OneUseCase = None,
    as_json: AsJson = False,
) -> None:
    """Move the data clock: bring each day's data, predict its flow of requests, let the sensors decide."""
    settings = load_settings()
    graph, screen = Graph(settings), console if as_json else out()
    days_done: list[dict[str, Any]] = []
    for declared in [get_usecase(usecase)] if usecase else load_usecases().values():
        for _ in range(days):
            done = advance_day(
                settings,
                declared,
                graph,
                follow=lambda run_id: follow_run(graph, settings, run_id, quiet=True),
                report=lambda text: console.print(f"[dim]{text}[/]"),
            )
            days_done.append(done)
            screen.print(
                f"[bold]{done['usecase']} {done['day']}[/] {done['predictions']} predictions by {done['model']}, "
                f"{done['labelled']} outcomes known, {done['verdict']}: {done['reason']} [dim]{done['seconds']} s[/]"
            )
            if done["retraining"]:
                screen.print(f"  [yellow]retrained[/] ({done['retraining_status']}): {done['retraining']}")
    emit(as_json, days_done, lambda: None)
