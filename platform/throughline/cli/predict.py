"""`throughline predict`: one request to the live endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from throughline.cli.arguments import AsJson, UseCaseName, read_objects
from throughline.cli.output import emit, out, prediction_line
from throughline.foundation.clock import data_clock
from throughline.foundation.settings import load_settings
from throughline.rollout import endpoint
from throughline.usecase import get_usecase


def predict(
    usecase: UseCaseName,
    example: bool = typer.Option(False, "--example", help="Take the first real request that is due now."),
    json_body: Path | None = typer.Option(None, "--json-body", help="A file with one instance, or with `instances`."),
    as_json: AsJson = False,
) -> None:
    """Send a request to the live endpoint: entity keys and request fields; it looks the features up."""
    if example == (json_body is not None):
        raise typer.BadParameter("give either --example or --json-body FILE")
    settings, declared = load_settings(), get_usecase(usecase)
    if json_body is not None:
        instances = read_objects(json_body, "instances")
    else:
        now = data_clock(settings, declared.clock_start(settings)).now()
        instances = [endpoint.example_request(settings, declared, now)]
    predictions = endpoint.predict(settings, declared, instances)
    result = predictions[0] if len(predictions) == 1 else predictions
    emit(as_json, result, lambda: _show(instances, predictions))


def _show(instances: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
    for instance, prediction in zip(instances, predictions, strict=True):
        out().print(", ".join(f"{name} {value}" for name, value in instance.items()))
        out().print(prediction_line(prediction))
