"""From a training dataset to a registered model version: run, launch, register.

Owns: the order of these steps and what is recorded about them. Does not own: any one of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughline.errors import ThroughlineError
from throughline.experiment.fingerprint import combine, fingerprint_code
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, SPEC_FILE, Tracking, TrainingReport, TrainingSpec
from throughline.experiment.tracking import client_of, tracked_run
from throughline.launch.protocol import Launcher, LaunchSpec, OnEvent
from throughline.records import DatasetRecord, ModelRecord
from throughline.registry import models
from throughline.settings import PROJECT_ROOT, Settings
from throughline.usecase import UseCase

if TYPE_CHECKING:
    from mlflow import MlflowClient


def training_parameters(settings: Settings, usecase: UseCase, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The declaration's parameters, the settings' epochs, then `overrides`. Raises for a name nobody declared."""
    declared = dict(usecase.trainer.parameters)
    if unknown := sorted(set(overrides) - set(declared)):
        raise ThroughlineError(
            f"Parameter(s) {', '.join(unknown)} unknown to {usecase.trainer.module}: known are {', '.join(declared)}."
        )
    if settings.training_epochs is not None and "epochs" in declared:
        declared["epochs"] = settings.training_epochs
    return {**declared, **overrides}


def code_fingerprint(usecase: UseCase) -> str:
    """Digest of what a training runs: the trainer's package, the common part, the graph put in front of the model."""
    package = usecase.trainer.module.split(".")[0]
    return fingerprint_code([package, "throughline.registry.onnx_graph"])


def train_and_register(
    settings: Settings,
    usecase: UseCase,
    dataset: DatasetRecord,
    launcher: Launcher,
    on_event: OnEvent | None = None,
    tags: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> ModelRecord:
    """Train on `dataset` and register the result. Raises `LaunchFailed` when a worker fails, with the run FAILED.

    `tags` go to run and version (the cause of a retraining, the orchestrator's run id); no secrets.
    """
    parameters = training_parameters(settings, usecase, overrides or {})
    processes = settings.training_processes or usecase.trainer.processes
    code = code_fingerprint(usecase)
    described = {
        **(tags or {}),
        "throughline.usecase": usecase.name,
        "throughline.dataset_fingerprint": dataset.fingerprint,
        "throughline.dataset_table": str(dataset.table),
        "throughline.code_fingerprint": code,
        "throughline.recipe_fingerprint": combine(
            dataset.fingerprint, code, json.dumps(parameters, sort_keys=True), str(processes)
        ),
    }
    client = client_of(settings)
    logged = {**parameters, "processes": processes, "trainer": usecase.trainer.module}
    with tracked_run(client, usecase.name, described, logged) as run_id:
        folder = settings.home / "training" / run_id
        folder.mkdir(parents=True)
        try:
            spec = LaunchSpec(
                module=usecase.trainer.module,
                parameters=folder / SPEC_FILE,
                processes=processes,
                timeout_s=settings.step_timeout_s,
                log=settings.logs / "training" / f"{run_id}.log",
                workdir=PROJECT_ROOT,
            )
            output = folder / "output"
            tracking = Tracking(uri=settings.url("mlflow"), run_id=run_id)
            told = TrainingSpec(dataset=dataset, parameters=parameters, output=str(output), tracking=tracking)
            spec.parameters.write_text(told.model_dump_json(indent=2))
            try:
                launcher.run(spec, on_event, cancelled)
            finally:
                _keep(client, run_id, spec.log, spec.parameters)
            report = _report(output)
            _keep(client, run_id, output / REPORT_FILE)
            return models.register(
                settings,
                name=usecase.name,
                run_id=run_id,
                file=output / MODEL_FILE,
                dataset_fingerprint=dataset.fingerprint,
                trained_until=report.trained_until,
                trainer=usecase.trainer.module,
                # The spec's numbers and what else decides them, so that a version can be rebuilt from its record.
                parameters={**parameters, "processes": processes},
                tags={**described, "throughline.base_rate": repr(report.base_rate)},
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _report(output: Path) -> TrainingReport:
    try:
        return TrainingReport.model_validate_json((output / REPORT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ThroughlineError(
            f"The trainer ended well but left no valid {REPORT_FILE}: `training.loop` shows what a trainer writes."
        ) from error


def _keep(client: MlflowClient, run_id: str, *files: Path) -> None:
    for file in files:
        if file.exists():
            client.log_artifact(run_id, str(file), "training")
