"""`throughline train | jobs | reproduce`: a person's words for trainings.

Owns: options, tables, JSON. Does not own: what is done with them (`throughline.graph.jobs`, `experiment/`).
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from throughline.cli.arguments import Model
from throughline.cli.output import console, emit, follow_run, out
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings

if TYPE_CHECKING:
    from throughline.graph.client import JobRun

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
app = typer.Typer(invoke_without_command=True)


def train(
    usecase: Annotated[str, typer.Argument(help="A declared use case: a name under usecases/.")],
    trainer: Annotated[str | None, typer.Option(help="A declared trainer; with --search also auto.")] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter; MEMBER.NAME of an ensemble's.")
    ] = None,
    as_of: Annotated[str | None, typer.Option(help="Train on what was known then: a local day, or an instant.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Fingerprint of an earlier dataset.")] = None,
    table: Annotated[str | None, typer.Option(help="USECASE/training/dataset@VERSION.")] = None,
    revision: Annotated[str | None, typer.Option(help="Train with the code of this git revision.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train also when nothing has changed.")] = False,
    search: Annotated[int, typer.Option(metavar="TRIALS", help="Search for parameters first.")] = 0,
    sampler: Annotated[str, typer.Option(help="Of a search: tpe, random, grid or cmaes.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="Of a search: median, hyperband, asha or none.")] = "median",
    parallel: Annotated[int, typer.Option(help="Of a search: trials at once, within the machine's cores.")] = 1,
    select_features: Annotated[
        bool, typer.Option(help="Of a search: first leave out what later weeks do not need.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Stay until it has ended; Ctrl-C leaves it running.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a model version and evaluate it on the weeks held out. Nothing is released by it."""
    from pydantic import ValidationError

    from throughline.graph.jobs import SearchRequest, TrainingRequest, submit
    from throughline.launch.protocol import WorkerFailed

    settings = load_settings()
    try:
        asked = SearchRequest(
            trials=search, sampler=sampler, pruner=pruner, parallel=parallel, select_features=select_features
        ) if search else None  # fmt: skip
        request = TrainingRequest(
            usecase=usecase,
            trainer=trainer,
            parameters=dict(map(_assignment, values or [])),
            as_of=as_of,
            dataset=dataset,
            table=table,
            revision=revision,
            force=force,
            search=asked,
        )
        job = submit(request, settings)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    except WorkerFailed as error:
        raise typer.BadParameter(str(error)) from error
    if not wait:
        emit(as_json, {"job": job.run_id}, lambda: out().print(f"job {job.run_id}: `throughline jobs logs` follows it"))
        return
    outcome = follow_run(job.graph, settings, job.run_id)
    if not outcome.succeeded:
        cause = outcome.errors[0] if outcome.errors else f"the run ended as {outcome.status}"
        raise ThroughlineError(f"{usecase} was not trained: {cause} (`throughline jobs logs {job.run_id}`).")
    state = job.state()
    emit(as_json, _told(state), lambda: _show_result(state))


def reproduce(
    model: Model,
    as_json: AsJson = False,
) -> None:
    """Rebuild a version from the registry's record alone, and compare. Registers nothing."""
    from throughline.experiment.reproduce import reproduce as rebuild
    from throughline.experiment.train import Run

    settings = load_settings()
    with console.status(f"rebuilding {model}") as status:

        def show(event: dict[str, Any]) -> None:
            status.update(f"rebuilding {model}: {event['event']} {event.get('epoch', '')}")

        found = rebuild(Run(settings, on_event=show), model)

    def table() -> None:
        verdict = "identical" if found.identical else "agrees within the tolerance" if found.agrees else "DIFFERS"
        out().print(
            f"[bold]{model}[/]: {verdict}, digest {found.digest[:12]} (registered {found.registered_digest[:12]})"
        )
        for key, values in found.metrics.items():
            out().print(f"  {key}: registered {values.registered}, rebuilt {values.rebuilt}")
        out().print(f"  revision {found.revision[:12]}, lock {found.lock}")
        for note in found.notes:
            out().print(f"  {note}")

    emit(as_json, found.model_dump(mode="json"), table)
    if not found.agrees:
        raise typer.Exit(1)


@app.callback()
def jobs(context: typer.Context, limit: int = typer.Option(20, min=1), as_json: AsJson = False) -> None:
    """List the newest trainings; `jobs logs ID` follows one, `jobs cancel ID` ends it; the ID's beginning is enough."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from throughline.graph.jobs import jobs as newest

    found = newest(load_settings(), limit)

    def table() -> None:
        shown = Table("job", "what", "state", "submitted (UTC)", "took", "model", "AUC", "log loss", box=None)
        for run in found:
            told = _told(run)
            shown.add_row(
                run.run_id[:8],
                run.job,
                run.status.lower(),
                f"{datetime.fromtimestamp(run.created, UTC):%Y-%m-%d %H:%M:%S}",
                f"{told['seconds']:.0f} s" if told["seconds"] is not None else "",
                str(told["model"] or ""),
                *(f"{told[name]:.4f}" if told[name] is not None else "" for name in ("auc", "log_loss")),
            )
        out().print(shown if found else "no training was submitted yet: throughline train USECASE")

    emit(as_json, [_told(run) for run in found], table)


@app.command()
def logs(job: str = typer.Argument(metavar="ID")) -> None:
    """What a training tells, until it has ended."""
    from throughline.graph.client import Graph, RunEvent

    graph = Graph(load_settings())

    def show(event: RunEvent) -> None:
        out().print(f"{datetime.fromtimestamp(event.seconds, UTC):%H:%M:%S} {event.message}", markup=False)

    outcome = graph.follow(_whole(job), show, timeout_s=86_400)
    out().print(outcome.status.lower())


@app.command()
def cancel(job: str = typer.Argument(metavar="ID"), as_json: AsJson = False) -> None:
    """End a training and all of its workers."""
    from throughline.graph.client import Graph

    graph, run_id = Graph(load_settings()), _whole(job)
    graph.cancel(run_id)
    while not (state := graph.job(run_id)).ended_somehow:
        time.sleep(0.5)
    emit(as_json, _told(state), lambda: out().print(f"{run_id[:8]}: {state.status.lower()}"))


def _assignment(text: str) -> tuple[str, Any]:
    """`lr=0.1` -> ("lr", 0.1); a value that is no JSON is a text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _whole(beginning: str) -> str:
    from throughline.graph.jobs import jobs as newest

    found = [run.run_id for run in newest(load_settings(), 200) if run.run_id.startswith(beginning)]
    if len(found) != 1:
        problem = "no training" if not found else f"{len(found)} trainings"
        raise ThroughlineError(f"{problem} begin(s) with {beginning}: `throughline jobs` lists them.")
    return found[0]


def _told(run: JobRun) -> dict[str, Any]:
    names = ("model", "trainer", "auc", "log_loss", "constant_log_loss", "fingerprint", "mlflow_run", "sha256")
    return {
        "job": run.run_id,
        "what": run.job,
        "status": run.status,
        "seconds": run.ended - run.started if run.started and run.ended else None,
        **{name: run.results.get(name) for name in names},
    }


def _show_result(run: JobRun) -> None:
    told = _told(run)
    out().print(
        f"[bold]{told['model']}[/] by {told['trainer']}: on the weeks held out AUC {told['auc']:.4f}, "
        f"log loss {told['log_loss']:.4f} (constant {told['constant_log_loss']:.4f})"
    )
    out().print(f"dataset {told['fingerprint'][:12]}, MLflow run {told['mlflow_run']}")
