"""The parameters of a trainer: a typed model that the trainer's module has, checked before anything is started.

Owns: how they are found, checked and refused. Does not own: any trainer's parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from throughline.launch.protocol import WorkerFailed


class CommonParameters(BaseModel):
    """What every trainer has."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    seed: int = Field(0, ge=0, lt=2**31, description="Of shuffles, initial weights and validation days.")


P = TypeVar("P", bound=CommonParameters)


def parameters_of(module: str) -> type[CommonParameters]:
    """The model `Parameters` of a trainer's module, which is light to import."""
    try:
        return importlib.import_module(module).Parameters
    except (ModuleNotFoundError, AttributeError) as error:
        raise WorkerFailed(f"Trainer {module} has no `Parameters` ({error}): correct the name.", "bad_code") from error


def merged(parameters: type[P], declared: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` over `declared`, both by the fields' own names: `lr` and `learning_rate` are one parameter."""
    own = {
        alias: name
        for name, field in parameters.model_fields.items()
        if isinstance(field.validation_alias, AliasChoices)
        for alias in field.validation_alias.choices
    }
    named = [{own.get(name, name): value for name, value in given.items()} for given in (declared, overrides)]
    return {**named[0], **named[1]}


def checked(parameters: type[P], given: Mapping[str, Any]) -> P:
    """Raises `WorkerFailed`, in one line, for a name the trainer does not have and for a value out of range."""
    try:
        return parameters.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            problem = f"is unknown; known are {', '.join(parameters.model_fields)}"
        else:
            message = first["msg"].removeprefix("Value error, ")
            problem = f"{first['input']!r}: {message[0].lower()}{message[1:]}"
        raise WorkerFailed(f"Parameter {name} {problem}.", "bad_parameters") from error
