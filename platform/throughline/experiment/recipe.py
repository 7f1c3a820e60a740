"""A recipe: everything but the rows that decides the model. Pure but for reading our own source.

Owns: which values may be overridden, what is in the fingerprint. Does not own: running it (`train.py`).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any, Literal

from pydantic import Field

from throughline.experiment.parameters import checked, merged, parameters_of
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine, fingerprint_code, fingerprint_imports, imports_of
from throughline.foundation.settings import Settings
from throughline.records import Record
from throughline.usecase import Trainer, UseCase

# Decides which rows a trainer is given.
_PREPARATION = "throughline.experiment.prepare"
OUR_PLATFORM = "throughline"


class Recipe(Record):
    """Trainings of one recipe on the same rows give the same model; on CPUs bit by bit, unless an elastic one changed
    its number of workers."""

    trainer: str = Field(description="Its name in the declaration.")
    module: str
    launcher: str
    processes: int
    min_processes: int | None = None
    threads: int
    precision: Literal["float32", "bfloat16"]
    parameters: dict[str, Any] = Field(description="All of them, defaults included.")
    code: str = Field(description="Fingerprint of the module and of all it imports from us.")
    preparation: str = Field(description="Fingerprint of what chooses and orders the rows.")
    frameworks: dict[str, str] = Field(description="Version of each foreign package that it imports, and of Python.")
    members: list[Recipe] = Field(default_factory=list)

    @property
    def seed(self) -> int:
        return int(self.parameters["seed"])

    @property
    def fingerprint(self) -> str:
        return combine(self.model_dump_json(exclude={"trainer"}))

    def on(self, dataset_fingerprint: str) -> str:
        """Fingerprint of a training: this recipe on a dataset."""
        return combine(dataset_fingerprint, self.fingerprint)


def recipe_of(
    settings: Settings, usecase: UseCase, trainer: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """The declared trainer with `overrides`: a parameter's name, or MEMBER.NAME for one of a member's.

    Raises one line for an undeclared trainer, an unknown parameter, a value out of range.
    """
    name = trainer or usecase.trainer
    if name not in usecase.trainers:
        known = ", ".join(usecase.trainers)
        raise ThroughlineError(f"Trainer {name} is unknown to {usecase.name}: declared are {known}.")
    declared = usecase.trainers[name]
    own, of_members = _divided(declared, overrides or {})
    members = [recipe_of(settings, usecase, member, of_members[member]) for member in declared.members]
    parameters = parameters_of(declared.module)
    given = merged(parameters, declared.parameters, own)
    if settings.training_epochs is not None and "epochs" in parameters.model_fields and "epochs" not in own:
        given["epochs"] = settings.training_epochs
    many = settings.training_processes if declared.launcher != "single" else None
    return Recipe(
        trainer=name,
        module=declared.module,
        launcher=declared.launcher,
        processes=many or declared.processes,
        min_processes=declared.min_processes and min(declared.min_processes, many or declared.processes),
        threads=declared.resources.threads,
        precision=declared.precision,
        parameters=checked(parameters, given).model_dump(mode="json"),
        code=code_of(declared.module),
        preparation=fingerprint_code([_PREPARATION]),
        frameworks=_frameworks(declared.module),
        members=members,
    )


def code_of(module: str) -> str:
    """Fingerprint of a trainer's module and of all it imports, from its own package and from the platform."""
    return fingerprint_imports(module, _ours(module))


def pipeline_code(usecase: UseCase) -> str:
    """Fingerprint of what the use case's own trainer, and its members, run."""
    names = [usecase.trainer, *usecase.trainers[usecase.trainer].members]
    return combine(*(code_of(usecase.trainers[name].module) for name in names))


def _ours(module: str) -> tuple[str, ...]:
    return module.partition(".")[0], OUR_PLATFORM


def _divided(declared: Trainer, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    own: dict[str, Any] = {}
    members: dict[str, dict[str, Any]] = {member: {} for member in declared.members}
    for name, value in overrides.items():
        member, dot, rest = name.partition(".")
        if dot and member in members:
            members[member][rest] = value
        else:
            own[name] = value
        if name == "seed":  # members must have the same validation days
            for given in members.values():
                given["seed"] = value
    return own, members


def _frameworks(module: str) -> dict[str, str]:
    packages = _distributions()
    foreign = (name for top in imports_of(module, _ours(module))[1] for name in packages.get(top, ()))
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in sorted(set(foreign))}}


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def flat(recipe: Recipe) -> dict[str, Any]:
    """The parameters as a run's, one level, values of lists and mappings as JSON."""
    values = {**recipe.parameters, "trainer": recipe.trainer, "processes": recipe.processes, "threads": recipe.threads}
    for member in recipe.members:
        values |= {f"{member.trainer}.{name}": value for name, value in flat(member).items() if name != "trainer"}
    return {name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in values.items()}
