"""A training request: one type from the command line, Python or the launchpad to the worktree of a commit.

Owns: its fields, and what is refused before anything starts. Does not own: carrying it out (`submitted.py`). The
graph's run config and the options' help are made from these fields; a new one is added here.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from throughline.experiment.recipe import recipe_of
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.records import Record
from throughline.usecase import UseCase

AUTO = "auto"


class SearchRequest(Record):
    """A search for parameters before the training."""

    trials: int = Field(ge=1, le=10_000, description="How many trials.")
    sampler: Literal["tpe", "random", "grid", "cmaes"] = Field("tpe", description="tpe, random, grid or cmaes.")
    pruner: Literal["median", "hyperband", "asha", "none"] = Field(
        "median", description="What ends a trial early: median, hyperband, asha or none."
    )
    parallel: int = Field(1, ge=1, description="Trials at once, within the machine's cores.")
    select_features: bool = Field(False, description="First leave out features that later weeks do not need.")


class TrainingRequest(Record):
    """At most one of `as_of`, `dataset` and `table` names the rows; none of them: all that is known now."""

    usecase: str = Field(description="A declared use case: a name under usecases/.")
    trainer: str | None = Field(None, description="A declared trainer; with a search also `auto`: all compete.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Over the declared ones; MEMBER.NAME for a parameter of an ensemble's member."
    )
    as_of: str | None = Field(None, description="Train on what was known then: a local day, or an instant with zone.")
    dataset: str | None = Field(None, description="Fingerprint of an earlier dataset, or how it begins.")
    table: str | None = Field(None, description="USECASE/training/dataset@VERSION.")
    commit: str | None = Field(None, description="Train with the code of this git commit.")
    force: bool = Field(False, description="Train also when the same recipe was trained on the same rows.")
    search: SearchRequest | None = Field(None, description="Search for parameters first.")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingRequest:
        if sum(value is not None for value in (self.as_of, self.dataset, self.table)) > 1:
            raise ValueError("give one of as_of, dataset and table")
        if self.trainer == AUTO and self.search is None:
            raise ValueError("trainer auto is for a search: give the number of trials")
        if self.trainer == AUTO and self.parameters:
            raise ValueError("trainer auto chooses among trainers, each with parameters of its own: set none of them")
        if self.search and self.commit:
            raise ValueError("a search runs the code of this checkout: search first, then train at the commit")
        return self


def check(settings: Settings, usecase: UseCase, request: TrainingRequest, now: datetime) -> None:
    """Raises one line for what is known to be wrong before anything is started. `now`: the data clock's."""
    if request.as_of is not None:
        as_of_instant(usecase, request.as_of, now)
    if request.table is not None:
        dataset_version(usecase, request.table)
    # The parameters of another commit are not known here.
    if request.commit is None and request.trainer != AUTO:
        recipe_of(settings, usecase, request.trainer, request.parameters)


def as_of_instant(usecase: UseCase, text: str, now: datetime) -> datetime:
    """The instant (UTC) of a local day or of an instant with its zone. Raises for any other text and for the future."""
    try:
        instant = usecase.day_start(date.fromisoformat(text)) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError as error:
        remedy = "write 2013-03-15, or with time and zone"
        raise ThroughlineError(f"as-of {text!r} is no day and no instant: {remedy}.") from error
    if instant.tzinfo is None:
        raise ThroughlineError(f"as-of {text} has no time zone: add one, such as Z, or give a local day.")
    if instant > now:
        raise ThroughlineError(f"as-of {text} is in the future: the data clock stands at {now.isoformat()}.")
    if instant <= usecase.day_start(usecase.replay.start):
        raise ThroughlineError(f"as-of {text} is before the data, which begin on {usecase.replay.start}.")
    return instant


def dataset_version(usecase: UseCase, text: str) -> int:
    """The version in USECASE/training/dataset@VERSION. Raises for any other table."""
    named, datasets = TableReference.parse(text), f"{usecase.name}/training/dataset"
    if named.table != datasets:
        raise ThroughlineError(f"Table {text} is no version of a training dataset: write {datasets}@VERSION.")
    return named.version
