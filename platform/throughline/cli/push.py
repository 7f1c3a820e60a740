"""`throughline push`: writes rows of a feature view offline and online."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from throughline.cli.output import emit, out
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.usecase import get_usecase


def push(
    usecase: str = typer.Argument(help="A declared use case: a name under usecases/."),
    view: str = typer.Argument(help="A feature view, or the name of its source."),
    json_body: Path = typer.Option(..., "--json-body", help="A file with one row, a list of rows, or with `rows`."),
    as_json: bool = typer.Option(False, "--json", help="Print what was pushed as JSON."),
) -> None:
    """Push feature values: training and requests both read them from now on, on the data clock."""
    from throughline.featurestore.push import push as push_rows  # postpones feast (4 s)

    settings, declared = load_settings(), get_usecase(usecase)
    pushed = push_rows(settings, declared, view, _rows(json_body))
    result = {**asdict(pushed), "table": str(pushed.table), "known_at": pushed.known_at.isoformat()}
    line = f"{pushed.rows} row(s) of {pushed.view}, known at {result['known_at']}, in {pushed.table} and online"
    emit(as_json, {"usecase": usecase, **result}, lambda: out().print(line))


def _rows(path: Path) -> list[dict]:
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ThroughlineError(f"{path} cannot be read as JSON ({error}): give a file with rows.") from error
    rows = body["rows"] if isinstance(body, dict) and "rows" in body else body
    rows = rows if isinstance(rows, list) else [rows]
    if not all(isinstance(row, dict) for row in rows):
        raise ThroughlineError(f"{path} has no rows: give objects with a value per column.")
    return rows
