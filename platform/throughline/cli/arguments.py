"""Arguments that several commands take, parsed once: what cannot be parsed is a wrong call (exit code 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

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


Table = Annotated[
    TableReference,
    typer.Argument(
        parser=parsed_by(TableReference.parse), metavar="TABLE@VERSION", help="USECASE/LAYER/TABLE and a version of it."
    ),
]
parse_model = parsed_by(ModelReference.parse)
Model = Annotated[
    ModelReference,
    typer.Argument(parser=parse_model, metavar="NAME/VERSION", help="A registered model version."),
]
