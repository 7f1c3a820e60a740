"""Carrying out what somebody submitted: a training, a search and then a training, here or at another revision.

Owns: which of these a request means. Does not own: any of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from throughline.experiment.job import Job, run_job, run_job_at
from throughline.experiment.request import AUTO, TrainingRequest
from throughline.experiment.search import search
from throughline.experiment.train import Run
from throughline.records import DatasetRecord, ModelRecord
from throughline.usecase import UseCase


def carry_out(
    run: Run, usecase: UseCase, request: TrainingRequest, dataset: DatasetRecord, tags: Mapping[str, str]
) -> ModelRecord:
    """The registered version. A search's best parameters are trained again on all rows before the holdout."""
    trainer, parameters = request.trainer, request.parameters
    told = dict(tags)
    if request.search:
        names = list(usecase.trainers) if trainer == AUTO else [trainer or usecase.trainer]
        found = search(run, usecase, names, dataset, request.search, parameters)
        dataset, recipe = found.dataset, found.recipe
        told["throughline.search"] = found.run_id
        job = Job(usecase=usecase.name, dataset=dataset, recipe=recipe, force=request.force, tags=told)
        return _model(run_job(run, job).model)
    job = Job(
        usecase=usecase.name,
        dataset=dataset,
        trainer=trainer,
        parameters=parameters,
        force=request.force,
        tags=told,
    )
    done = run_job(run, job) if request.revision is None else run_job_at(run, job, request.revision)
    return _model(done.model)


def _model(record: ModelRecord | None) -> ModelRecord:
    assert record is not None, "a job without an output folder registers"
    return record
