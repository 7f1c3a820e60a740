"""`throughline rollout show | pause | resume | abort USECASE`: the rollout of a new version, by people.

Owns: lines on the terminal, and the JSON of `--json`: usecase, rollout (id), state (running, paused, promoted, rolled
back, aborted), candidate and stable (NAME/VERSION), strategy, stage (from 1), stages, share (of the answers, the
candidate's), started_at, deadline_at, ended_at, why (of the outcome), verdict {conclusion, reasons, findings},
requests, replayed, trouble, steps [{at, what, share, why, by}]; null where there was no rollout yet.
Does not own: a look at a rollout (`throughline.rollout.controller`).
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from throughline.cli.arguments import AsJson, UseCaseName
from throughline.cli.output import columns, console, emit, fields, out
from throughline.foundation.clock import WallClock
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import Settings, load_settings
from throughline.rollout import controller
from throughline.rollout.picture import fields_of, headline
from throughline.rollout.state import Rollout, Step, read_rollout
from throughline.rollout.strategy import share_of, stages
from throughline.usecase import UseCase, get_usecase

app = typer.Typer(no_args_is_help=True)


@app.callback()
def rollout() -> None:
    """The rollout of a new version: show, pause, resume, abort."""


@app.command()
def show(name: UseCaseName, as_json: AsJson = False) -> None:
    """The newest rollout: share, stage, verdict with the evidence, deadline, and its steps."""
    usecase = get_usecase(name)
    found = read_rollout(load_settings(), usecase.name)
    emit(as_json, found and fields_of(found), lambda: _show(found, usecase))


@app.command()
def pause(name: UseCaseName, as_json: AsJson = False) -> None:
    """Keep the shares as they are; a bad candidate still goes back. The deadline waits, too."""
    settings = load_settings()
    changed = controller.pause(settings, get_usecase(name), current_principal(settings))
    emit(as_json, fields_of(changed), lambda: _line(changed))


@app.command()
def resume(name: UseCaseName, as_json: AsJson = False) -> None:
    """Go on after a pause."""
    settings = load_settings()
    changed = controller.resume(settings, get_usecase(name), current_principal(settings))
    emit(as_json, fields_of(changed), lambda: _line(changed))


@app.command()
def abort(
    name: UseCaseName,
    reason: Annotated[str, typer.Option(help="Why; it stands in the history.")] = "",
    as_json: AsJson = False,
) -> None:
    """Return to the stable version now."""
    settings = load_settings()
    changed = controller.abort(settings, get_usecase(name), current_principal(settings), reason)
    emit(as_json, fields_of(changed), lambda: _line(changed))


def follow_rollout(settings: Settings, usecase: UseCase, quiet: bool = False) -> Rollout | None:
    """Look at the rollout that is under way until it has ended, with a line per step; None when none is.

    When it is interrupted, the graph's sensor goes on.
    """
    shown = 0
    with console.status("the rollout starts") as status:

        def report(rollout: Rollout) -> None:
            nonlocal shown
            for step in rollout.steps[shown:]:
                if not quiet:
                    console.print(f"  [green]✓[/] {_sentence(step)}")
            shown = len(rollout.steps)
            status.update(escape(headline(rollout, WallClock().now())))

        return controller.follow(settings, usecase, report)


def _line(rollout: Rollout) -> None:
    out().print(escape(headline(rollout, WallClock().now())))


def _sentence(step: Step) -> str:
    by = f" by {step.by}" if step.by else ""
    return escape(f"{step.what}{by}" + (f": {step.why}" if step.why else ""))


def _show(rollout: Rollout | None, usecase: UseCase) -> None:
    if rollout is None:
        out().print(f"{usecase.name} had no rollout yet")
        return
    evidence = rollout.evidence
    out().print(f"[bold]{escape(headline(rollout, WallClock().now()))}[/]")
    out().print(
        fields(
            {
                "strategy": f"{rollout.plan.strategy}: {', '.join(map(str, stages(rollout.plan)))}",
                "answers": f"{share_of(rollout):.0%} by the candidate",
                "requests": f"{evidence.requests:,.0f} of the candidate, {evidence.replayed:,.0f} of them while logged "
                "ones were replayed",
                "trouble": rollout.trouble,
            }
        )
    )
    if rollout.verdict is not None and rollout.verdict.findings:
        table = columns(
            "metric",
            "verdict",
            "evidence",
            "rolled back at",
            "reason",
            right=("evidence", "rolled back at"),
            wrapped=("reason",),
        )
        for one in rollout.verdict.findings:
            numbers = f"{one.evidence:.3g}", f"{one.limit:g}"
            table.add_row(one.metric, one.verdict.replace("_", " "), *numbers, escape(one.reason.partition(": ")[2]))
        out().print(table)
    table = columns("when", "answers", "what", wrapped=("what",), right=("answers",))
    for step in rollout.steps:
        table.add_row(f"{step.at.astimezone(usecase.zone):%Y-%m-%d %H:%M:%S %Z}", f"{step.share:.0%}", _sentence(step))
    out().print(table)
