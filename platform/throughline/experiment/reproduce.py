"""Rebuilding a model version from its number, and comparing the two.

Owns: what is compared, and when two models count as the same. Does not own: training (`train.py`), worktrees.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from throughline.experiment.commit import lock_of, require_committed
from throughline.experiment.job import rebuild_at
from throughline.experiment.recipe import Recipe
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, TrainingReport
from throughline.experiment.train import DATASET_FILE, RECIPE_FILE, Run
from throughline.featurestore.dataset import fingerprint_at_version
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import PROJECT_ROOT
from throughline.mlflow import artifacts
from throughline.models.served_model import sha256_of
from throughline.records import DatasetRecord, Record
from throughline.registry import versions as models

# Of validation log loss, for a training whose number of workers changed on its way; any other must be bit-equal.
ELASTIC_TOLERANCE = 0.01
R = TypeVar("R", bound=Record)


class Compared(Record):
    registered: float | None
    rebuilt: float | None


class Reproduction(Record):
    """`identical`: the very bytes. `agrees`: identical, or within the tolerance where an elastic run changed size."""

    model: ModelReference
    identical: bool
    agrees: bool
    digest: str = Field(description="SHA-256 of the rebuilt ONNX file.")
    registered_digest: str
    metrics: dict[str, Compared]
    commit: str
    lock: str = Field(description="same, or differs: the packages installed here against those of the version.")
    notes: list[str] = Field(default_factory=list)


def reproduce(run: Run, model: ModelReference) -> Reproduction:
    """Rebuild a version in a clean worktree of its commit from what the registry has of it; registers nothing.

    Raises one line when that is not enough: data missing or changed, code not committed or changed.
    """
    record = models.get(run.settings, model)
    tags = models.provenance_of(run.settings, record).decoded
    with tempfile.TemporaryDirectory(prefix="throughline-") as folder:
        work = Path(folder)
        dataset = _logged(run, record.run_id, DATASET_FILE, DatasetRecord, work)
        recipe = _logged(run, record.run_id, RECIPE_FILE, Recipe, work)
        before = _logged(run, record.run_id, REPORT_FILE, TrainingReport, work)
        commit = require_committed(tags.get("commit", "unknown"))
        if (found := fingerprint_at_version(dataset)) != record.dataset_fingerprint:
            raise ThroughlineError(
                f"{dataset.table} has fingerprint {found[:12]}, {record.reference} was trained on "
                f"{record.dataset_fingerprint[:12]}: the table was changed; build that dataset again."
            )
        run.report("reproduce", model=str(record.reference), commit=commit[:12], trainer=recipe.trainer)
        output = work / "rebuilt" / "output"
        _require_same_code(recipe, rebuild_at(run, commit, recipe, dataset, output), record.reference)
        after = TrainingReport.model_validate_json((output / REPORT_FILE).read_text())
        digest = sha256_of(output / MODEL_FILE)
    changed_size = bool(before.interruptions)
    notes = [f"{len(before.interruptions)} changes of the number of workers in the first run"] if changed_size else []
    same_lock = lock_of(PROJECT_ROOT) == tags.get("lock")
    notes += [] if same_lock else ["the packages installed here are not those of the version: see its lock"]
    identical = digest == record.sha256
    return Reproduction(
        model=record.reference,
        identical=identical,
        agrees=identical or (changed_size and _close(before.validation_log_loss, after.validation_log_loss)),
        digest=digest,
        registered_digest=record.sha256,
        metrics={
            key: Compared(registered=getattr(before, key), rebuilt=getattr(after, key))
            for key in ("validation_log_loss", "validation_auc")
        },
        commit=commit,
        lock="same" if same_lock else "differs",
        notes=notes,
    )


def _require_same_code(recipe: Recipe, found: dict[str, str], reference: ModelReference) -> None:
    changed = [part.module for part in (recipe, *recipe.members) if found.get(part.module) != part.code]
    if changed:
        cause = "git ignored a file of it, or history was rewritten"
        problem = f"{', '.join(changed)} at the commit of {reference} is not the code it was trained with"
        raise ThroughlineError(f"{problem}: {cause}.")


def _close(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= ELASTIC_TOLERANCE


def _logged(run: Run, run_id: str, name: str, kind: type[R], folder: Path) -> R:
    """A file of the version's MLflow run."""
    if not artifacts.is_logged(run.settings, run_id, f"training/{name}"):
        raise ThroughlineError(
            f"Run {run_id} has no training/{name}: the version was registered before this could be rebuilt."
        )
    file = artifacts.fetch_of_run(run.settings, run_id, f"training/{name}", folder / name)
    return kind.model_validate_json(file.read_bytes())
