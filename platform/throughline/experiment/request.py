"""What a person asks of a training, in their own words, and which rows that means.

Owns: the words, what is refused before anything starts. Does not own: training (`train.py`), how a request travels.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from throughline.experiment.recipe import recipe_of
from throughline.featurestore.dataset import LAYER, TABLE, build_dataset, find_dataset
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.records import DatasetRecord, FeatureStoreRecord, Record
from throughline.usecase import UseCase

AUTO = "auto"


class SearchRequest(Record):
    """A search for parameters: how many trials, chosen how, ended early how, how many at once."""

    trials: int = Field(ge=1, le=10_000)
    sampler: Literal["tpe", "random", "grid", "cmaes"] = "tpe"
    pruner: Literal["median", "hyperband", "asha", "none"] = "median"
    parallel: int = Field(1, ge=1)
    select_features: bool = Field(False, description="First leave out features that later weeks do not need.")


class TrainingRequest(Record):
    """At most one of `as_of`, `dataset` and `table` says which rows; none of them: all that is known now."""

    usecase: str
    trainer: str | None = Field(None, description="A declared one; with a search also `auto`: all of them compete.")
    parameters: dict[str, Any] = Field(default_factory=dict)
    as_of: str | None = Field(None, description="A local day (its beginning) or an instant with its zone.")
    dataset: str | None = Field(None, description="Fingerprint of an earlier dataset, or how it begins.")
    table: str | None = Field(None, description="USECASE/training/dataset@VERSION.")
    revision: str | None = Field(None, description="Train with the code of this git revision.")
    force: bool = Field(False, description="Train also when the same recipe was trained on the same rows.")
    search: SearchRequest | None = None

    @model_validator(mode="after")
    def _one_way_to_name_rows(self) -> TrainingRequest:
        if sum(value is not None for value in (self.as_of, self.dataset, self.table)) > 1:
            raise ValueError("give one of as_of, dataset and table")
        if self.trainer == AUTO and self.search is None:
            raise ValueError("trainer auto is for a search: say how many trials")
        if self.trainer == AUTO and self.parameters:
            raise ValueError("trainer auto chooses among trainers, each with parameters of its own: set none of them")
        if self.search and self.revision:
            raise ValueError("a search runs the code that stands here: search first, then train at the revision")
        return self


def check(settings: Settings, usecase: UseCase, request: TrainingRequest, now: datetime) -> None:
    """Raises one line for what can be known to be wrong before anything is started. `now`: the data clock's."""
    if request.as_of is not None:
        as_of_instant(usecase, request.as_of, now)
    if request.table is not None:
        _table_version(usecase, request.table)
    # of another revision's parameters this one knows nothing
    if request.revision is None and request.trainer != AUTO:
        recipe_of(settings, usecase, request.trainer, request.parameters)


def dataset_for(
    settings: Settings, usecase: UseCase, request: TrainingRequest, store: FeatureStoreRecord, now: datetime
) -> DatasetRecord:
    """The rows a request means; made when it names none that are there."""
    if request.dataset is not None:
        return find_dataset(settings, usecase, fingerprint=request.dataset)
    if request.table is not None:
        return find_dataset(settings, usecase, version=_table_version(usecase, request.table))
    as_of = now if request.as_of is None else as_of_instant(usecase, request.as_of, now)
    return build_dataset(settings, usecase, store, as_of)


def as_of_instant(usecase: UseCase, text: str, now: datetime) -> datetime:
    """The instant (UTC) a person means. Raises for one that is no time, has no zone, or has not come yet."""
    try:
        instant = usecase.day_start(date.fromisoformat(text)) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError as error:
        raise ThroughlineError(
            f"as-of {text!r} is no day and no instant: write 2013-03-15, or with time and zone."
        ) from (error)
    if instant.tzinfo is None:
        raise ThroughlineError(f"as-of {text} has no time zone: add one, such as Z, or give a local day.")
    if instant > now:
        raise ThroughlineError(f"as-of {text} has not come: the data clock stands at {now.isoformat()}.")
    if instant <= usecase.day_start(usecase.replay.start):
        raise ThroughlineError(f"as-of {text} is before the data, which begin on {usecase.replay.start}.")
    return instant


def _table_version(usecase: UseCase, text: str) -> int:
    named, datasets = TableReference.parse(text), f"{usecase.name}/{LAYER}/{TABLE}"
    if named.table != datasets:
        raise ThroughlineError(f"Table {text} is no version of a training dataset: write {datasets}@VERSION.")
    return named.version
