"""`throughline train`: a training request from options.

Owns: options. Does not own: the request (`experiment/request.py`), how it travels (`graph/jobs.py`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from throughline.cli.arguments import AsJson
from throughline.cli.jobs import fields_of
from throughline.cli.output import emit, follow_run, out
from throughline.foundation.errors import first_problem
from throughline.foundation.settings import load_settings
from throughline.graph.jobs import JobRun, SearchRequest, TrainingRequest, submit
from throughline.launch.protocol import WorkerFailed


def _help(name: str, of: type[SearchRequest | TrainingRequest] = TrainingRequest) -> str:
    """The field's own description, so that it is written once."""
    return of.model_fields[name].description or ""


def _of_search(name: str) -> Any:
    return typer.Option(help=f"Of a search: {_help(name, SearchRequest)}")


def train(
    context: typer.Context,
    usecase: Annotated[str, typer.Argument(help=_help("usecase"))],
    trainer: Annotated[str | None, typer.Option(help=_help("trainer"))] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help=_help("parameters"))
    ] = None,
    as_of: Annotated[str | None, typer.Option(help=_help("as_of"))] = None,
    dataset: Annotated[str | None, typer.Option(help=_help("dataset"))] = None,
    table: Annotated[str | None, typer.Option(help=_help("table"))] = None,
    commit: Annotated[str | None, typer.Option(help=_help("commit"))] = None,
    force: Annotated[bool, typer.Option("--force", help=_help("force"))] = False,
    search: Annotated[int, typer.Option(metavar="TRIALS", help=_help("search"))] = 0,
    sampler: Annotated[str, _of_search("sampler")] = "tpe",
    pruner: Annotated[str, _of_search("pruner")] = "median",
    parallel: Annotated[int, _of_search("parallel")] = 1,
    select_features: Annotated[bool, _of_search("select_features")] = False,
    wait: Annotated[bool, typer.Option(help="Stay until it has ended; Ctrl-C leaves it running.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train a model version and evaluate it on the weeks held out. Nothing is released by it."""
    settings = load_settings()
    # Options are named like the fields, so that all but these three are passed on as they are.
    given = {**context.params, "trials": search, "parameters": dict(map(_assignment, parameters or []))}
    given["search"] = {name: given[name] for name in SearchRequest.model_fields} if search else None
    try:
        request = TrainingRequest.model_validate({name: given[name] for name in TrainingRequest.model_fields})
        job = submit(request, settings)
    except ValidationError as error:
        raise typer.BadParameter(first_problem(error)[1]) from error
    except WorkerFailed as error:
        raise typer.BadParameter(str(error)) from error
    if not wait:
        emit(as_json, {"job": job.run_id}, lambda: out().print(f"job {job.run_id}: `throughline jobs logs` follows it"))
        return
    state = job.succeeded(follow_run(job.graph, settings, job.run_id))
    emit(as_json, fields_of(state), lambda: _show_result(state))


def _assignment(text: str) -> tuple[str, Any]:
    """`lr=0.1` -> ("lr", 0.1); a value that is no JSON is a text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _show_result(run: JobRun) -> None:
    found = fields_of(run)
    out().print(
        f"[bold]{found['model']}[/] by {found['trainer']}: on the weeks held out AUC {found['auc']:.4f}, "
        f"log loss {found['log_loss']:.4f} (constant {found['constant_log_loss']:.4f})"
    )
    out().print(f"dataset {found['fingerprint'][:12]}, MLflow run {found['mlflow_run']}")
