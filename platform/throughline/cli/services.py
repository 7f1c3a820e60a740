"""`throughline up | down | status | doctor`: how the local services are shown.

Owns: words and tables on the terminal, JSON on stdout. Does not own: what the services do (`throughline.services`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from throughline import services
from throughline.foundation.settings import Settings, load_settings
from throughline.services import ServiceStatus
from throughline.services import doctor as checks

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

_COLOURS = {"running": "green", "starting": "yellow", "stopped": "bright_black"}


def up(
    names: Annotated[list[str] | None, typer.Argument(metavar="SERVICE", help="All when none is named.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the local services that do not run, and wait until they answer."""
    settings = load_settings()
    try:
        with progress() as report:
            statuses = services.up(settings, names, report)
    except services.ServiceFailed as error:
        for line in error.tail:
            typer.echo(f"  {line}", err=True)
        raise
    if as_json:
        typer.echo(json.dumps({"services": describe(statuses)}))
    else:
        show_services(statuses)


def down(as_json: AsJson = False) -> None:
    """Stop the local services, supervisor included; nothing of ours runs or listens afterwards."""
    services.down(load_settings())
    typer.echo(json.dumps({"services": []}) if as_json else "Stopped: no service of this home runs any more.")


def status(as_json: AsJson = False) -> None:
    """Show the services and the models that are served; exit code 1 unless every service runs."""
    settings = load_settings()
    statuses = services.status(settings)
    answers = any(one.name == "model-server" and one.state == "running" for one in statuses)
    models = services.served_models(settings) if answers else []
    if as_json:
        typer.echo(json.dumps({"services": describe(statuses), "models": models}))
    else:
        show_services(statuses)
        show_models(models)
    if any(one.state != "running" for one in statuses):
        raise typer.Exit(1)


def doctor(as_json: AsJson = False) -> None:
    """Check what this machine needs; name what is missing and the command that fixes it."""
    found = checks.examine(load_settings())
    if as_json:
        typer.echo(json.dumps({"ok": not checks.failed(found), "checks": [one.as_dict() for one in found]}))
    else:
        for one in found:
            mark, colour = ("ok", "green") if one.ok else ("MISSING", "red") if one.required else ("note", "yellow")
            typer.echo(f"{typer.style(f'{mark:8}', fg=colour)}{one.name:14}{one.found}")
            if not one.ok:
                typer.echo(f"{'':22}{one.fix}")
    if checks.failed(found):
        raise typer.Exit(1)


def describe(statuses: list[ServiceStatus]) -> list[dict]:
    """For `--json`; `detail` only where there is one."""
    return [
        {"name": one.name, "state": one.state, "address": one.address} | ({"detail": one.detail} if one.detail else {})
        for one in statuses
    ]


def show_services(statuses: list[ServiceStatus]) -> None:
    for one in statuses:
        state = typer.style(f"{one.state:10}", fg=_COLOURS.get(one.state, "red"))
        typer.echo(f"{one.name:19}{state}{one.address or '-':27}{one.detail}".rstrip())


def show_models(models: list[dict]) -> None:
    for one in models:
        share = one.get("share")
        traffic = f"{share:.0%} of traffic" if isinstance(share, int | float) else ""
        typer.echo(f"{'model':19}{one.get('name')}/{one.get('version')}  {one.get('alias') or ''}  {traffic}".rstrip())


@contextmanager
def progress() -> Generator[Callable[[str, str, float], None]]:
    """What `services.up` reports to: a live table on a terminal, a line per change of state elsewhere; on stderr."""
    if sys.stderr.isatty():
        with _live() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Callable[[str, str, float], None]:
    shown: dict[str, str] = {}

    def report(name: str, state: str, seconds: float) -> None:
        if shown.get(name) != state and not (name not in shown and state == "running"):
            typer.echo(f"{name} {state} ({seconds:.1f} s)", err=True)
        shown[name] = state

    return report


@contextmanager
def _live() -> Generator[Callable[[str, str, float], None]]:
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:18}"),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, TaskID] = {}

        def report(name: str, state: str, seconds: float) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=1, state=state)
            if state != "starting":
                shown.update(tasks[name], completed=1)
            shown.update(tasks[name], state=state)

        yield report


def require_all(settings: Settings) -> None:
    """`up` with its progress, for other commands that need the services."""
    with progress() as report:
        services.up(settings, report=report)
