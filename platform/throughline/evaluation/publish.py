"""An evaluation in the model's MLflow run: metrics, page and record; reading it back.

Owns: names of metrics and artifacts there. Does not own: the numbers (`evaluate.py`), the page (`report.py`).
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from throughline.evaluation.report import render
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts
from throughline.mlflow.tracking import client_of
from throughline.records import EvaluationRecord, GateDecision, ModelRecord
from throughline.records.store import read_record

FOLDER, PAGE, NUMBERS = "evaluation", "report.html", "evaluation.json"


def publish(
    settings: Settings, model: ModelRecord, evaluation: EvaluationRecord, decision: GateDecision | None = None
) -> str:
    """Log what is finite as metrics, the page and the record as artifacts; the address of the page.

    Called again with the decision, the page is replaced by one that begins with it.
    """
    from mlflow.entities import Metric  # postpones mlflow (6 s)

    client, at = client_of(settings), int(evaluation.evaluated_at.timestamp() * 1000)
    metrics = [Metric(name, value, at, 0) for name, value in numbers_of(evaluation).items()]
    client.log_batch(model.run_id, metrics=metrics)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in ((PAGE, render(evaluation, decision)), (NUMBERS, evaluation.model_dump_json(indent=1))):
            path = Path(folder) / name
            path.write_text(content)
            client.log_artifact(model.run_id, str(path), FOLDER)
    experiment = client.get_run(model.run_id).info.experiment_id
    return f"{settings.url('mlflow')}/#/experiments/{experiment}/runs/{model.run_id}/artifacts/{FOLDER}/{PAGE}"


def fetch(settings: Settings, model: ModelRecord) -> EvaluationRecord | None:
    """The newest evaluation that was published of a version; None where there is none."""
    path = f"{FOLDER}/{NUMBERS}"
    if not artifacts.is_logged(settings, model.run_id, path):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        file = artifacts.fetch_of_run(settings, model.run_id, path, Path(scratch) / NUMBERS)
        return read_record(file, EvaluationRecord, f"evaluate {model.reference} again")


def numbers_of(evaluation: EvaluationRecord) -> dict[str, float]:
    """The evaluation as MLflow metrics: `holdout_auc`, `champion_log_loss`, ...; only what is finite."""
    judged = {**evaluation.judged, "holdout": evaluation.candidate, "training": evaluation.training}
    del judged["candidate"]
    found = {f"{name}_{metric}": v for name, of in judged.items() if of for metric, v in of.model_dump().items()}
    found |= {f"disparity_{column}_{kind}": v for column, by in evaluation.disparity.items() for kind, v in by.items()}
    found |= {f"missing_{view}": rise for view, rise in evaluation.missing.items()}
    found["outside_domain"] = evaluation.outside_domain
    if evaluation.cost:
        found |= evaluation.cost.model_dump()
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}
