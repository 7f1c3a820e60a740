"""Arguments that several commands take, parsed once: what cannot be parsed is a wrong call (exit code 2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference

T = TypeVar("T")


def parsed_by(parse: Callable[[str], T]) -> Callable[[str], T]:
    """A parser for `typer.Argument` out of one that raises `ThroughlineError`."""

    def parser(text: str) -> T:
        try:
            return parse(text)
        except ThroughlineError as error:
            raise typer.BadParameter(str(error)) from None

    return parser


parse_model = parsed_by(ModelReference.parse)
parse_table = parsed_by(TableReference.parse)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
OneUseCase = Annotated[str | None, typer.Option("--usecase", help="One use case only; all of them when not given.")]
UseCaseName = Annotated[str, typer.Argument(metavar="USECASE", help="A declared use case: a name under usecases/.")]
PredictionId = Annotated[str, typer.Argument(metavar="PREDICTION_ID", help="As the endpoint named it in its answer.")]
Model = Annotated[
    ModelReference, typer.Argument(parser=parse_model, metavar="NAME/VERSION", help="A registered model version.")
]
Table = Annotated[
    TableReference,
    typer.Argument(parser=parse_table, metavar="TABLE@VERSION", help="USECASE/LAYER/TABLE and a version of it."),
]


def read_objects(path: Path, key: str) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, a list of them, or either under `key`. Raises `ThroughlineError`."""
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ThroughlineError(f"{path} cannot be read as JSON ({error}): give a file with {key}.") from error
    found = body[key] if isinstance(body, dict) and key in body else body
    objects = found if isinstance(found, list) else [found]
    if not all(isinstance(each, dict) for each in objects):
        raise ThroughlineError(f"{path} has no {key}: give JSON objects.")
    return objects
