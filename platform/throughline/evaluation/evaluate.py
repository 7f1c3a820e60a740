"""A candidate on the rows held out by time, beside the constant and the champion.

Owns: which rows, against what; `evaluate` is pure, `evaluate_candidate` does the reading and recording around it.
Does not own: the metrics' definitions (`metrics.py`), the decision (`gate.py`).
"""

from __future__ import annotations

import math
import tempfile
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from throughline.clock import WallClock
from throughline.errors import ThroughlineError
from throughline.evaluation.metrics import metrics_of
from throughline.evaluation.plots import reliability_plot
from throughline.experiment.tracking import client_of
from throughline.lakehouse.table import scan
from throughline.records import DatasetRecord, EvaluationRecord, Metrics, ModelRecord
from throughline.registry import models
from throughline.registry.served_model import ServedModel
from throughline.settings import Settings
from throughline.usecase import UseCase


def evaluate_candidate(
    settings: Settings, usecase: UseCase, dataset: DatasetRecord, model: ModelRecord
) -> EvaluationRecord:
    """Evaluate `model` on the dataset's held-out rows against constant and champion; its run gets the numbers.

    `evaluated_at` is the wall clock's: a gate asks how long ago this was done, not what the data knew.
    """
    champion = models.champion(settings, usecase.name)
    holdout, base_rate = read_rows(dataset)
    loaded = _load(settings, model)
    incumbent = None if champion is None else (_load(settings, champion), champion)
    evaluation = evaluate(loaded, model, holdout, base_rate, dataset, WallClock().now(), incumbent)
    client = client_of(settings)
    for who, metrics in (("holdout", evaluation.candidate), ("constant", evaluation.constant)):
        for name, value in _finite(metrics).items():
            client.log_metric(model.run_id, f"{who}_{name}", value)
    labels = holdout["label"].to_numpy()
    if math.isfinite(evaluation.candidate.ece):
        with tempfile.TemporaryDirectory() as scratch:
            image = Path(scratch) / "reliability.png"
            image.write_bytes(reliability_plot(loaded.score(holdout), labels, model.reference))
            client.log_artifact(model.run_id, str(image), "evaluation")
    return evaluation


def read_rows(dataset: DatasetRecord) -> tuple[pl.DataFrame, float]:
    """The held-out rows, and the base rate of the rows that could have been trained on (NaN when there are none)."""
    frame = scan(dataset.path, dataset.table.version).collect()
    holdout = frame.filter(pl.col("prediction_time") >= dataset.holdout_from)
    before = frame.filter(
        (pl.col("prediction_time") < dataset.holdout_from) & (pl.col("label_available_at") < dataset.holdout_from)
    )
    rate = before["label"].mean()
    return holdout, float("nan") if rate is None else float(rate)


def evaluate(
    model: ServedModel,
    record: ModelRecord,
    holdout: pl.DataFrame,
    constant_rate: float,
    dataset: DatasetRecord,
    now: datetime,
    champion: tuple[ServedModel, ModelRecord] | None = None,
) -> EvaluationRecord:
    """Score the same rows three times. `constant_rate`: the score of a model that knows the base rate alone.

    A champion that cannot score these rows (other features) has NaN metrics, on which a gate cannot say yes.
    """
    if holdout.is_empty():
        raise ThroughlineError(
            f"Dataset {dataset.table} has no row at or after {dataset.holdout_from.isoformat()}: "
            "nothing was held out; build the dataset with a later as-of."
        )
    labels = holdout["label"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return EvaluationRecord(
        model=record.reference,
        sha256=model.sha256,
        dataset_fingerprint=dataset.fingerprint,
        evaluated_at=now,
        holdout_from=dataset.holdout_from,
        holdout_until=holdout["prediction_time"].max(),
        candidate=metrics_of(model.score(holdout), labels),
        constant=metrics_of(np.full(len(labels), constant_rate), labels),
        champion=None if champion is None else _champion(champion[0], holdout, labels),
        champion_model=None if champion is None else champion[1].reference,
    )


def _champion(model: ServedModel, holdout: pl.DataFrame, labels: np.ndarray) -> Metrics:
    try:
        return metrics_of(model.score(holdout), labels)
    except ThroughlineError:
        return metrics_of(np.full(len(labels), np.nan), labels)


def _load(settings: Settings, model: ModelRecord) -> ServedModel:
    with tempfile.TemporaryDirectory() as scratch:  # the session is made from bytes read: the file may go
        return ServedModel.load(models.fetch(settings, model, Path(scratch)), model.sha256)


def _finite(metrics: Metrics) -> dict[str, float]:
    return {name: value for name, value in metrics.model_dump().items() if math.isfinite(value)}
