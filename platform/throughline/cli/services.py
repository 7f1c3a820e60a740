"""`throughline up | down | status | doctor`: the local services.

Owns: lines on the terminal, JSON on stdout. Does not own: what the services do (`throughline.services`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from throughline import services
from throughline.cli.arguments import AsJson
from throughline.cli.output import console, emit
from throughline.foundation.clock import WallClock
from throughline.foundation.settings import load_settings
from throughline.rollout.picture import fields_of, headline
from throughline.rollout.state import read_rollout
from throughline.services import ServiceStatus
from throughline.services import doctor as checks
from throughline.usecase import load_usecases

_COLOURS = {"running": "green", "starting": "yellow", "stopped": "bright_black"}


def up(
    names: Annotated[list[str] | None, typer.Argument(metavar="SERVICE", help="All when none is named.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the local services that do not run, and wait until they answer; what was deployed is served."""
    settings = load_settings()
    try:
        with progress() as report:
            statuses = services.up(settings, names, report)
    except services.ServiceFailed as error:
        for line in error.tail:
            typer.echo(f"  {line}", err=True)
        raise
    models = services.served_models(settings)
    troubles = list(services.load_deployed(settings, models).values()) if serves(statuses) else []
    result = {"services": describe(statuses), "troubles": [asdict(trouble) for trouble in troubles]}
    emit(as_json, result, lambda: (show_services(statuses), show_troubles(troubles)))
    if troubles:
        raise typer.Exit(1)


def down(as_json: AsJson = False) -> None:
    """Stop the local services, supervisor included; nothing of ours runs or listens afterwards."""
    services.down(load_settings())
    emit(as_json, {"services": []}, lambda: typer.echo("Stopped: no service of this home runs any more."))


def status(as_json: AsJson = False) -> None:
    """Show the services, the models that are served, and what is wrong; exit code 1 unless every service runs and what
    was deployed is served."""
    settings = load_settings()
    statuses = services.status(settings)
    models = services.served_models(settings) if serves(statuses) else []
    refused = services.refusals(settings) if serves(statuses) else {}
    unserved = list(services.not_served(settings, models, refused).values()) if serves(statuses) else []
    collects = any(one.name == "collector" and one.state == "running" for one in statuses)
    troubles = [*unserved, *services.undelivered(settings, collects)]
    newest = [read_rollout(settings, usecase) for usecase in load_usecases()]
    under_way = [rollout for rollout in newest if rollout and rollout.running]
    result = {
        "services": describe(statuses),
        "models": models,
        "rollouts": [fields_of(rollout) for rollout in under_way],
        "troubles": [asdict(trouble) for trouble in troubles],
    }

    def show() -> None:
        show_services(statuses, models)
        for rollout in under_way:
            typer.echo(f"{'rollout':19}{headline(rollout, WallClock().now())}")
        show_troubles(troubles)

    emit(as_json, result, show)
    if unserved or any(one.state != "running" for one in statuses):
        raise typer.Exit(1)


def doctor(as_json: AsJson = False) -> None:
    """Check what this machine needs; name what is missing and the command that fixes it."""
    found = checks.examine(load_settings())
    ok = not checks.failed(found)
    emit(as_json, {"ok": ok, "checks": [asdict(check) for check in found]}, lambda: show_checks(found))
    if not ok:
        raise typer.Exit(1)


def show_checks(found: list[checks.Check]) -> None:
    for check in found:
        mark, colour = ("ok", "green") if check.ok else ("MISSING", "red") if check.required else ("note", "yellow")
        typer.echo(f"{typer.style(f'{mark:8}', fg=colour)}{check.name:14}{check.found}")
        if not check.ok:
            typer.echo(f"{'':22}{check.fix}")


def serves(statuses: list[ServiceStatus]) -> bool:
    """Whether the model server is among them and answers."""
    return any(one.name == "model-server" and one.state == "running" for one in statuses)


def show_troubles(troubles: Sequence[services.Trouble]) -> None:
    for one in troubles:
        since = f" (since {one.since})" if one.since else ""
        typer.echo(f"{typer.style('trouble', fg='red'):<28}{one.what}{since}: run `{one.command}`.")


def describe(statuses: list[ServiceStatus]) -> list[dict]:
    """For `--json`; `detail` only where there is one."""
    return [{key: value for key, value in asdict(one).items() if value or key != "detail"} for one in statuses]


def show_services(statuses: list[ServiceStatus], models: Sequence[dict] = ()) -> None:
    for one in statuses:
        state = typer.style(f"{one.state:10}", fg=_COLOURS.get(one.state, "red"))
        typer.echo(f"{one.name:19}{state}{one.address or '-':27}{one.detail}".rstrip())

    for one in models:
        share = one.get("share")
        traffic = f"{share:.0%} of traffic" if isinstance(share, int | float) else ""
        typer.echo(f"{'model':19}{one.get('name')}/{one.get('version')}  {one.get('alias') or ''}  {traffic}".rstrip())


@contextmanager
def progress() -> Generator[Callable[[str, str, float], None]]:
    """What `services.up` reports to: a live table on a terminal, a line per change of state elsewhere; on stderr."""
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:18}"),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        tasks: dict[str, TaskID] = {}

        def report(name: str, state: str, seconds: float) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=1, state=state)
            shown.update(tasks[name], state=state, completed=int(state != "starting"))

        yield report


def _lines() -> Callable[[str, str, float], None]:
    shown: dict[str, str] = {}

    def report(name: str, state: str, seconds: float) -> None:
        if shown.get(name) != state and not (name not in shown and state == "running"):
            typer.echo(f"{name} {state} ({seconds:.1f} s)", err=True)
        shown[name] = state

    return report
