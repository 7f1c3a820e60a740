"""What commands print: progress and tables on the way, or one JSON document at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from throughline import services
from throughline.foundation.settings import Settings

if TYPE_CHECKING:
    from throughline.graph.client import Graph, RunEvent, RunOutcome

# log lines that need more room than a terminal has are left to the UI
LONGEST_LINE = 110

WIDTH = 160  # of a result in a file or a pipe, where rows are not to be broken at 80 columns

# progress goes to stderr, so that stdout holds nothing but the result
console = Console(stderr=True, highlight=False)


def out() -> Console:
    """Where a command's result goes: stdout as it is at this moment."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def emit(as_json: bool, result: Any, human: Callable[[], object]) -> None:
    """The result of a command: JSON on stdout with --json, otherwise whatever `human` prints."""
    if as_json:
        sys.stdout.write(json.dumps(result, default=str) + "\n")
    else:
        human()


def columns(*headings: str, right: Collection[str] = (), wrapped: Collection[str] = ()) -> Table:
    """A table without rules; the columns named in `right` are aligned there, cells of those in `wrapped` may break."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        wrap = heading in wrapped
        overflow, justify = "fold" if wrap else "ellipsis", "right" if heading in right else "left"
        table.add_column(heading, justify=justify, overflow=overflow, no_wrap=not wrap)
    return table


def fields(values: Mapping[str, str | None]) -> Table:
    """A row per label and value; one without a value is left out."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in values.items():
        if value:
            table.add_row(label, escape(value))
    return table


def listed(values: Iterable[object] | None, reason: str | None = None) -> str:
    """`a, b` or `none`; of None, which is unknown, the reason."""
    if values is None:
        return f"unknown ({reason})" if reason else "unknown"
    return ", ".join(map(str, values)) or "none"


def prediction_line(prediction: Mapping[str, Any]) -> str:
    """Decision, score, model version and id of a prediction."""
    return (
        f"[bold]{escape(prediction['decision'])}[/] score {prediction['score']:.4f}, "
        f"{prediction['model_name']}/{prediction['model_version']}, prediction_id {prediction['prediction_id']}"
    )


def follow_run(graph: Graph, settings: Settings, run_id: str, quiet: bool = False) -> RunOutcome:
    """Wait for a run, with a line per finished step and what is under way below it.

    When it fails and a service has ended meanwhile, the end of that service's log is shown, too.
    """
    running: dict[str, float] = {}
    link = f"{settings.url('dagster')}/runs/{run_id}"
    with console.status(f"starting {link}") as status:

        def show(event: RunEvent) -> None:
            step = (event.step or "").replace("__", "/")
            if event.type == "started":
                running[step] = event.seconds
            elif event.type == "finished":
                took = event.seconds - running.pop(step, event.seconds)
                if not quiet:
                    console.print(f"  [green]✓[/] {step} [dim]{took:.1f} s[/]")
            elif event.type == "failed":
                running.pop(step, None)
                console.print(f"  [red]✗[/] {event.message}")
            elif event.type == "log" and not quiet and len(event.message) <= LONGEST_LINE:
                console.print(f"    {event.message}", style="dim", markup=False)
            status.update(f"{', '.join(running) or 'waiting'} [dim]{link}[/]")

        outcome = graph.follow(run_id, show)
    if not outcome.succeeded and (dead := services.dead_service(settings)):
        for line, style in [(str(dead), "red"), *((f"  {line}", "dim") for line in dead.tail)]:
            console.print(f"  {line}", style=style, markup=False)
    return outcome
