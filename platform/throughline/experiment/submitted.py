"""Carrying out a training request: its rows, then a training, a search and a training, or a training at a commit.

Owns: which of these a request means. Does not own: any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from throughline.experiment.job import train_at, train_here
from throughline.experiment.request import AUTO, TrainingRequest, as_of_instant, dataset_version
from throughline.experiment.search import search
from throughline.experiment.train import Run, train_and_register
from throughline.featurestore.dataset import build_dataset, find_dataset
from throughline.foundation.settings import Settings
from throughline.mlflow.tags import Tags
from throughline.records import DatasetRecord, FeatureStoreRecord, ModelRecord
from throughline.usecase import UseCase


def dataset_for(
    settings: Settings, usecase: UseCase, request: TrainingRequest, store: FeatureStoreRecord, now: datetime
) -> DatasetRecord:
    """The rows that a request names; built when it names none that exist. `now`: the data clock's."""
    if request.dataset is not None:
        return find_dataset(settings, usecase, fingerprint=request.dataset)
    if request.table is not None:
        return find_dataset(settings, usecase, version=dataset_version(usecase, request.table))
    as_of = now if request.as_of is None else as_of_instant(usecase, request.as_of, now)
    return build_dataset(settings, usecase, store, as_of)


def carry_out(
    run: Run, usecase: UseCase, request: TrainingRequest, dataset: DatasetRecord, tags: Mapping[str, str]
) -> ModelRecord:
    """The registered version. A search's best parameters are trained again on all rows before the holdout."""
    if request.commit:
        return train_at(run, request.commit, request, dataset, tags)
    if request.search is None:
        return train_here(run, request, dataset, tags)
    names = list(usecase.trainers) if request.trainer == AUTO else [request.trainer or usecase.trainer]
    found = search(run, usecase, names, dataset, request.search, request.parameters)
    tags = {**tags, **Tags(search=found.run_id)}
    return train_and_register(run, usecase, found.dataset, found.recipe, tags, request.force)
