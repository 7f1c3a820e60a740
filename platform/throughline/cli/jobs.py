"""`throughline jobs`: the trainings that were submitted.

Owns: options, the table, the fields of a training in JSON. Does not own: the runs (`graph/client.py`).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import typer
from rich.table import Table

from throughline.cli.arguments import AsJson
from throughline.cli.output import emit, out
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.graph.client import Graph, JobRun, RunEvent
from throughline.graph.jobs import jobs as newest

app = typer.Typer(invoke_without_command=True)


@app.callback()
def jobs(context: typer.Context, limit: int = typer.Option(20, min=1), as_json: AsJson = False) -> None:
    """List the newest trainings; `jobs logs ID` follows one, `jobs cancel ID` ends it; the ID's beginning is enough."""
    if context.invoked_subcommand is not None:
        return
    found = newest(load_settings(), limit)
    emit(as_json, [fields_of(run) for run in found], lambda: _show(found))


def _show(found: list[JobRun]) -> None:
    table = Table("job", "what", "state", "submitted (UTC)", "took", "model", "AUC", "log loss", box=None)
    for run in found:
        fields = fields_of(run)
        submitted = f"{datetime.fromtimestamp(run.created, UTC):%Y-%m-%d %H:%M:%S}"
        took, model = "" if fields["seconds"] is None else f"{fields['seconds']:.0f} s", str(fields["model"] or "")
        metrics = ("" if fields[name] is None else f"{fields[name]:.4f}" for name in ("auc", "log_loss"))
        table.add_row(run.run_id[:8], run.job, run.status.lower(), submitted, took, model, *metrics)
    out().print(table if found else "no training was submitted yet: throughline train USECASE")


@app.command()
def logs(job: str = typer.Argument(metavar="ID")) -> None:
    """Print the log of a training until it has ended."""

    def show(event: RunEvent) -> None:
        out().print(f"{datetime.fromtimestamp(event.seconds, UTC):%H:%M:%S} {event.message}", markup=False)

    outcome = Graph(load_settings()).follow(_run_id(job), show, timeout_s=86_400)
    out().print(outcome.status.lower())


@app.command()
def cancel(job: str = typer.Argument(metavar="ID"), as_json: AsJson = False) -> None:
    """End a training and all of its workers."""
    graph, run_id = Graph(load_settings()), _run_id(job)
    graph.cancel(run_id)
    while not (state := graph.job(run_id)).has_ended:
        time.sleep(0.5)
    emit(as_json, fields_of(state), lambda: out().print(f"{run_id[:8]}: {state.status.lower()}"))


def fields_of(run: JobRun) -> dict[str, Any]:
    """A training as `--json` shows it; seconds are None until it has ended."""
    names = ("model", "trainer", "auc", "log_loss", "constant_log_loss", "fingerprint", "mlflow_run", "sha256")
    return {
        "job": run.run_id,
        "what": run.job,
        "status": run.status,
        "seconds": run.ended - run.started if run.started and run.ended else None,
        **{name: run.results.get(name) for name in names},
    }


def _run_id(beginning: str) -> str:
    found = [run.run_id for run in newest(load_settings(), 200) if run.run_id.startswith(beginning)]
    if len(found) != 1:
        problem = "no training" if not found else f"{len(found)} trainings"
        raise ThroughlineError(f"{problem} begin(s) with {beginning}: `throughline jobs` lists them.")
    return found[0]
