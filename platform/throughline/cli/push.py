"""`throughline push`: writes rows of a feature view offline and online."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from throughline.cli.arguments import AsJson, UseCaseName, read_objects
from throughline.cli.output import emit, out
from throughline.foundation.settings import load_settings
from throughline.usecase import get_usecase


def push(
    usecase: UseCaseName,
    view: str = typer.Argument(help="A feature view, or the name of its source."),
    json_body: Path = typer.Option(..., "--json-body", help="A file with one row, a list of rows, or with `rows`."),
    as_json: AsJson = False,
) -> None:
    """Push feature values: training and requests both read them from now on, on the data clock."""
    from throughline.featurestore.push import Pusher  # postpones feast (4 s)

    pushed = Pusher(load_settings(), get_usecase(usecase)).push(view, read_objects(json_body, "rows"))
    result = {**asdict(pushed), "table": str(pushed.table), "known_at": pushed.known_at.isoformat()}
    line = f"{pushed.rows} row(s) of {pushed.view}, known at {result['known_at']}, in {pushed.table} and online"
    emit(as_json, {"usecase": usecase, **result}, lambda: out().print(line))
