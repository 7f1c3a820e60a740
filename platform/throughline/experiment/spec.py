"""What a training is told and what it reports: the two JSON files between the platform and a training module.

Owns: their words. Does not own: how workers are started (`launch/`) or what they do (`training/`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from throughline.records import DatasetRecord, Record

SPEC_FILE, MODEL_FILE, REPORT_FILE = "spec.json", "model.onnx", "report.json"


class Tracking(Record):
    """An MLflow server and a run in it, which the platform has created. Never with credentials in the URI."""

    uri: str = Field(description="http(s) address of the tracking server.")
    run_id: str


class TrainingSpec(Record):
    """Everything one training needs; a file of this is all a worker gets."""

    dataset: DatasetRecord
    parameters: dict[str, Any]
    output: str = Field(description="Folder that will hold model.onnx and report.json, all or nothing.")
    tracking: Tracking | None = None
    threads: int = Field(1, ge=1, description="CPU threads per worker.")


class Epoch(Record):
    """Means over all rows and workers; losses are log losses in nats."""

    epoch: int
    train_loss: float
    validation_loss: float | None
    samples_per_s: float
    seconds: float


class TrainingReport(Record):
    """What a training has done."""

    sha256: str
    rows_trained: int
    rows_validation: int
    base_rate: float = Field(description="Share of positive labels among the training rows.")
    trained_from: datetime
    trained_until: datetime = Field(description="Latest prediction time among the rows trained on.")
    world_size: int
    epochs: list[Epoch]
    onnx_difference: float = Field(description="Largest difference between ONNX and framework on real rows.")
    seconds: float
