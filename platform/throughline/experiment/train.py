"""From a training dataset to a registered model version: prepare, launch, register; once for the same recipe and rows.

Owns: the order of these steps, retries, and what is recorded about them. Does not own: any one of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughline.experiment.commit import Commit, current_commit
from throughline.experiment.prepare import prepare
from throughline.experiment.recipe import Recipe, flat
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, SPEC_FILE, Tracking, TrainingReport, TrainingSpec
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.launch.local import LAUNCHERS
from throughline.launch.protocol import RETRIED, Launcher, LaunchFailed, LaunchSpec, OnEvent
from throughline.mlflow.tags import Tags
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.records import DatasetRecord, ModelRecord
from throughline.registry import versions as models
from throughline.usecase import UseCase

if TYPE_CHECKING:
    from mlflow import MlflowClient

ATTEMPTS = 3
PREPARED_KEPT = 8
DATASET_FILE, RECIPE_FILE = "dataset.json", "recipe.json"


@dataclass(frozen=True)
class Run:
    """Where trainings run, where their events go, and what may cancel them."""

    settings: Settings
    on_event: OnEvent | None = None
    cancelled: Callable[[], bool] | None = None
    launchers: Mapping[str, Launcher] = field(default_factory=lambda: LAUNCHERS)
    checkpoint_s: float = 5.0

    def report(self, event: str, **values: Any) -> None:
        if self.on_event:
            self.on_event({"event": event, **values})

    @property
    def folder(self) -> Path:
        return self.settings.home / "training"


def train_and_register(
    run: Run,
    usecase: UseCase,
    dataset: DatasetRecord,
    recipe: Recipe,
    tags: Mapping[str, Any] | None = None,
    force: bool = False,
) -> ModelRecord:
    """Train and register the result, or return the version that the same recipe on the same rows already gave.

    `tags` go to run and version (the cause of a retraining, the orchestrator's run id); no secrets. Raises
    `LaunchFailed` when the retries are used up; the run is then FAILED and nothing is registered.
    """
    client = client_of(run.settings)
    fingerprint = recipe.on(dataset.fingerprint)
    with exclusive(run, fingerprint):
        if not force and (known := models.with_tag(run.settings, usecase.name, Tags(recipe_fingerprint=fingerprint))):
            note = "same data, code and parameters; --force trains again"
            run.report("reused", model=str(known.reference), note=note)
            return known
        return _train(run, client, usecase, dataset, recipe, tags or {})


def _train(
    run: Run,
    client: MlflowClient,
    usecase: UseCase,
    dataset: DatasetRecord,
    recipe: Recipe,
    tags: Mapping[str, Any],
) -> ModelRecord:
    commit = current_commit(PROJECT_ROOT)
    tags = {
        **tags,
        **Tags(
            usecase=usecase.name,
            dataset_fingerprint=dataset.fingerprint,
            dataset_table=dataset.table,
            code_fingerprint=recipe.code,
            commit=str(commit),
            lock=commit.lock,
            trainer=recipe.trainer,
            recipe_fingerprint=recipe.on(dataset.fingerprint),
        ),
    }
    with tracked_run(client, usecase.name, tags, flat(recipe)) as run_id:
        work = run.folder / "runs" / run_id
        work.mkdir(parents=True)
        try:
            _log_inputs(client, run_id, work, dataset, recipe, commit)
            try:
                report = fit(run, dataset, recipe, work / "output", run_id=run_id)
            finally:
                for log in sorted((run.settings.logs / "training").glob(f"{run_id}*.log")):
                    client.log_artifact(run_id, str(log), "training")
            client.log_artifact(run_id, str(work / "output" / REPORT_FILE), "training")
            return models.register(
                run.settings,
                name=usecase.name,
                run_id=run_id,
                file=work / "output" / MODEL_FILE,
                dataset_fingerprint=dataset.fingerprint,
                trained_until=report.trained_until,
                trainer=recipe.trainer,
                parameters=recipe.parameters,
                tags={**tags, **Tags(base_rate=report.base_rate)},
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)


def fit(
    run: Run,
    dataset: DatasetRecord,
    recipe: Recipe,
    output: Path,
    *,
    run_id: str | None = None,
    validation_from: datetime | None = None,
    name: str = "",
) -> TrainingReport:
    """Train without registering: leaves model.onnx and report.json in `output`.

    `run_id`: the MLflow run that gets the metrics. `validation_from`: see `prepare.py`. `name`: of a member. A training
    that loses a worker is started again from its last checkpoint.
    """
    members = {}
    for member in recipe.members:
        place = output.with_name(f"{output.name}-{member.trainer}")
        part = replace(run, on_event=_with_member(run.on_event, member.trainer))
        fit(part, dataset, member, place, run_id=run_id, validation_from=validation_from, name=member.trainer)
        members[member.trainer] = str(place)
    data = prepare(run.folder / "prepared", dataset, recipe.seed, validation_from)
    _remove_oldest(run.folder / "prepared", data)
    checkpoint = run.folder / "checkpoints" / f"{recipe.on(dataset.fingerprint)[:32]}-{data.name}"
    file = output.with_name(f"{output.name}-{SPEC_FILE}")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Members share the run's metrics; under one name they would overwrite each other's.
    tracking = Tracking(uri=run.settings.url("mlflow"), run_id=run_id) if run_id and not name else None
    spec = TrainingSpec(
        data=str(data),
        parameters=recipe.parameters,
        output=str(output),
        checkpoint=str(checkpoint),
        checkpoint_s=run.checkpoint_s,
        tracking=tracking,
        threads=recipe.threads,
        precision=recipe.precision,
        members=members,
    )
    file.write_text(spec.model_dump_json(indent=2))
    suffix = "-".join(part for part in (run_id or output.parent.name, name) if part)
    launch = LaunchSpec(
        module=recipe.module,
        parameters=file,
        processes=recipe.processes,
        min_processes=recipe.min_processes,
        timeout_s=run.settings.step_timeout_s,
        log=run.settings.logs / "training" / f"{suffix}.log",
        workdir=PROJECT_ROOT,
    )
    _launch(run, recipe, launch)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return _load_report(output)


def _launch(run: Run, recipe: Recipe, launch: LaunchSpec) -> None:
    launcher = run.launchers[recipe.launcher]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            launcher.run(launch, run.on_event, run.cancelled)
            return
        except LaunchFailed as failure:
            if failure.reason not in RETRIED or attempt == ATTEMPTS:
                raise
            run.report("retry", attempt=attempt + 1, of=ATTEMPTS, reason=failure.reason)


def _with_member(on_event: OnEvent | None, name: str) -> OnEvent | None:
    return on_event and (lambda event: on_event({"event": event["event"], "member": name, **event}))


def exclusive(run: Run, fingerprint: str) -> AbstractContextManager[None]:
    """Serialises trainings (or searches) of one fingerprint on this machine: the second finds what the first made."""
    reported = False

    def waiting() -> None:
        nonlocal reported
        if run.cancelled is not None and run.cancelled():
            raise ThroughlineError("Cancelled while an identical training was running.")
        if not reported:
            run.report("waiting", note="an identical training is already running on this machine")
        reported = True

    return locked(run.folder / "locks" / fingerprint, waiting)


def _remove_oldest(folder: Path, used: Path) -> None:
    """Prepared rows are made again when needed; those used last are kept."""
    used.touch()
    by_age = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-PREPARED_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def _log_inputs(
    client: MlflowClient, run_id: str, work: Path, dataset: DatasetRecord, recipe: Recipe, commit: Commit
) -> None:
    """Log with the run what a version is rebuilt from (`reproduce.py`), before anything is started."""
    for name, content in ((DATASET_FILE, dataset), (RECIPE_FILE, recipe)):
        (work / name).write_text(content.model_dump_json(indent=2))
        client.log_artifact(run_id, str(work / name), "training")
    client.set_tag(run_id, "mlflow.source.git.commit", commit.digest or "unknown")


def _load_report(output: Path) -> TrainingReport:
    try:
        return TrainingReport.model_validate_json((output / REPORT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ThroughlineError(
            f"The trainer ended without a valid {output / REPORT_FILE}: end it with `task.write` (training/worker.py)."
        ) from error
