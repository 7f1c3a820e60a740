"""`throughline predict`: one request to the live endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from throughline.cli.output import emit, out
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.rollout import endpoint
from throughline.usecase import get_usecase


def predict(
    usecase: str = typer.Argument(help="A declared use case: a name under usecases/."),
    example: bool = typer.Option(False, "--example", help="Take the first real request that is due now."),
    json_body: Path | None = typer.Option(None, "--json-body", help="A file with one instance, or with `instances`."),
    as_json: bool = typer.Option(False, "--json", help="Print the prediction as JSON."),
) -> None:
    """Send a request to the live endpoint: entity keys and request fields; it looks the features up."""
    if example == (json_body is not None):
        raise typer.BadParameter("give either --example or --json-body FILE")
    settings, declared = load_settings(), get_usecase(usecase)
    if json_body is not None:
        instances = _instances(json_body)
    else:
        instances = [
            endpoint.example_request(settings, declared, data_clock(settings, declared.clock_start(settings)).now())
        ]
    predictions = endpoint.predict(settings, declared, instances)
    result = predictions[0] if len(predictions) == 1 else predictions
    emit(as_json, result, lambda: _show(instances, predictions))


def _instances(path: Path) -> list[dict[str, Any]]:
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ThroughlineError(f"{path} cannot be read as JSON ({error}): give a file with one request.") from error
    return body["instances"] if isinstance(body, dict) and "instances" in body else [body]


def _show(instances: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    screen = out()
    for instance, prediction in zip(instances, predictions, strict=True):
        screen.print(", ".join(f"{name} {value}" for name, value in instance.items()))
        screen.print(
            f"[bold]{prediction['decision']}[/] score {prediction['score']:.4f}, "
            f"{prediction['model_name']}/{prediction['model_version']}, prediction_id {prediction['prediction_id']}"
        )
