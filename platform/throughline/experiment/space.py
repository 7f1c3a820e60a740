"""What a search may vary, as Optuna's parameters and back.

Owns: their names, points of a grid, the declared values as a first trial. Does not own: the study (`search.py`).

A parameter is named KEY where one trainer is searched and TRAINER.KEY where several compete; KEY is MEMBER.NAME for a
parameter of an ensemble's member. Choices are given by place, because Optuna's storage takes no lists.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from throughline.experiment.recipe import Recipe
from throughline.foundation.errors import ThroughlineError
from throughline.usecase import Choices, Range, UseCase

if TYPE_CHECKING:
    import optuna

TRAINER = "trainer"
GRID_POINTS = 4


@dataclass(frozen=True)
class SearchSpace:
    """`trainers`: trainer -> key -> what it may be."""

    trainers: Mapping[str, Mapping[str, Choices | Range]]

    @property
    def competing(self) -> bool:
        return len(self.trainers) > 1

    def _named(self, trainer: str) -> dict[str, Choices | Range]:
        prefix = f"{trainer}." if self.competing else ""
        return {f"{prefix}{key}": value for key, value in self.trainers[trainer].items()}

    def suggest(self, trial: optuna.Trial) -> tuple[str, dict[str, Any]]:
        """The sampler's next trainer and overrides."""
        trainer = next(iter(self.trainers))
        if self.competing:
            trainer = trial.suggest_categorical(TRAINER, list(self.trainers))
        for name, value in self._named(trainer).items():
            if isinstance(value, Choices):
                trial.suggest_categorical(name, list(range(len(value.choices))))
            elif value.whole:
                trial.suggest_int(name, int(value.low), int(value.high), log=value.log)
            else:
                trial.suggest_float(name, value.low, value.high, log=value.log)
        return self.overrides(trial.params)

    def overrides(self, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Trainer and overrides of a trial's parameters."""
        trainer = params.get(TRAINER) or next(iter(self.trainers))
        found = {}
        for key, (name, value) in zip(self.trainers[trainer], self._named(trainer).items(), strict=True):
            if name in params:
                found[key] = value.choices[params[name]] if isinstance(value, Choices) else params[name]
        return trainer, found

    def declared(self, base: Recipe) -> dict[str, Any]:
        """A recipe's own values as a trial's parameters, without those that the space does not hold."""
        parameters = dict(base.parameters)
        for member in base.members:
            parameters |= {f"{member.trainer}.{name}": value for name, value in member.parameters.items()}
        params: dict[str, Any] = {TRAINER: base.trainer} if self.competing else {}
        for key, (name, value) in zip(self.trainers[base.trainer], self._named(base.trainer).items(), strict=True):
            given = parameters.get(key)
            if isinstance(value, Choices):
                if given in value.choices:
                    params[name] = value.choices.index(given)
            elif given is not None and value.low <= given <= value.high:
                params[name] = given
        return params

    def grid(self) -> dict[str, list[Any]]:
        """The points of a grid. Raises when trainers compete, whose parameters are not those of each other."""
        if self.competing:
            raise ThroughlineError("A grid is of one trainer's parameters: name the trainer, or take another sampler.")
        return {name: _points(value) for name, value in self._named(next(iter(self.trainers))).items()}


def space_of(usecase: UseCase, trainers: Collection[str], fixed: Collection[str] = ()) -> SearchSpace:
    """What the declaration lets vary and is not `fixed`. Raises when nothing is left."""
    spaces: dict[str, dict[str, Choices | Range]] = {}
    for name in trainers:
        declared = usecase.trainers[name]
        space = dict(declared.search)
        for member in declared.members:
            space |= {f"{member}.{key}": value for key, value in usecase.trainers[member].search.items()}
        if free := {key: value for key, value in space.items() if key not in fixed}:
            spaces[name] = free
    if not spaces:
        problem = "no `search` is declared of what is not set; declare what may vary"
        raise ThroughlineError(f"{', '.join(trainers)} of {usecase.name}: {problem}.")
    return SearchSpace(spaces)


def _points(value: Choices | Range) -> list[Any]:
    """All places of a choice; of a range `GRID_POINTS` values, ends included."""
    if isinstance(value, Choices):
        return list(range(len(value.choices)))
    points = (np.geomspace if value.log else np.linspace)(value.low, value.high, GRID_POINTS)
    return sorted({round(point) for point in points}) if value.whole else points.tolist()
