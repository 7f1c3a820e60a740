"""A model version, its evaluation and the gate's decision, as records without a registry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from throughline.evaluation.gate import decide
from throughline.records import EvaluationRecord, GateDecision, Metrics, ModelRecord
from throughline.usecase import Bound


def a_model(version: int = 2, name: str = "u", **changes: Any) -> ModelRecord:
    fields = {
        "name": name,
        "version": version,
        "sha256": "d" * 64,
        "dataset_fingerprint": "f",
        "run_id": "r",
        "uri": "",
    }
    return ModelRecord(**{**fields, "trainer": "t", "parameters": {}, **changes})


def a_metric(log_loss: float = 0.45, auc: float = 0.76, ece: float = 0.03, rows: int = 100) -> Metrics:
    return Metrics(rows=rows, log_loss=log_loss, auc=auc, brier=0.15, ece=ece)


def an_evaluation(of: ModelRecord, now: datetime, **changes: Any) -> EvaluationRecord:
    """Good, on the two weeks before `now`; there is no champion."""
    fields = {
        "model": of.reference,
        "sha256": of.sha256,
        "dataset_fingerprint": of.dataset_fingerprint,
        "evaluated_at": now - timedelta(minutes=5),
        "holdout_from": now - timedelta(days=14),
        "holdout_until": now,
        "candidate": a_metric(),
        "constant": a_metric(log_loss=0.53, auc=0.5),
        "champion": None,
        "champion_model": None,
    }
    return EvaluationRecord(**{**fields, **changes})


def decided(
    evaluation: EvaluationRecord | None, model: ModelRecord, bounds: Mapping[str, Bound], now: datetime
) -> GateDecision:
    """The decision while the champion is still the one that the evaluation compared with."""
    return decide(evaluation, model, bounds, now, evaluation.champion_model if evaluation else None)
