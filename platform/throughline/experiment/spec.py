"""The JSON files between the platform and a worker: what to train, and the report of it.

Owns: their fields. Does not own: how workers are started (`launch/`) or what they do (`training/`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from throughline.records import Record

SPEC_FILE, MODEL_FILE, REPORT_FILE = "spec.json", "model.onnx", "report.json"


class Tracking(Record):
    """An MLflow server and a run in it, which the platform has created. Never with credentials in the URI."""

    uri: str = Field(description="http(s) address of the tracking server.")
    run_id: str


class TrainingSpec(Record):
    """Everything one training needs; a file of this is all a worker gets."""

    data: str = Field(description="Folder of prepared rows, see `prepared.py`.")
    parameters: dict[str, Any]
    output: str = Field(description="Folder that will hold model.onnx and report.json, all or nothing.")
    checkpoint: str | None = Field(None, description="Folder from which a restarted training continues.")
    checkpoint_s: float = Field(5.0, ge=0, description="Seconds between two checkpoints, at least.")
    tracking: Tracking | None = None
    threads: int = Field(1, ge=1, description="CPU threads per worker.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the forward pass; weights and sums stay float32."
    )
    members: dict[str, str] = Field(
        default_factory=dict, description="Of an ensemble: name -> folder with that model's model.onnx and report.json."
    )


class Epoch(Record):
    """Means over all rows and workers; losses are log losses in nats. An epoch may be a round of boosting."""

    epoch: int
    train_loss: float
    validation_loss: float | None
    samples_per_s: float
    seconds: float
    data_share: float | None = Field(None, description="Part of the time that went into fetching rows.")


class Interruption(Record):
    """Workers were lost or returned: in which epoch, and what it cost."""

    epoch: int
    workers: int = Field(description="How many there were afterwards.")
    seconds_lost: float = Field(description="From the last commit until training went on, work thrown away included.")


class TrainedRows(Record):
    """The rows of a training; instants in UTC."""

    rows_trained: int
    rows_validation: int
    base_rate: float = Field(description="Share of positive labels among the training rows.")
    trained_from: datetime = Field(description="First prediction time.")
    trained_until: datetime = Field(description="Latest prediction or label time of any row, validation included.")


class TrainingReport(TrainedRows):
    """What a training has done."""

    sha256: str
    world_size: int
    epochs: list[Epoch]
    validation_log_loss: float | None = Field(description="Of the exported model; None without validation rows.")
    validation_auc: float | None
    onnx_difference: float = Field(description="Largest difference between ONNX and framework on real rows.")
    seconds: float
    device: str = "cpu"
    resumed_at: float | None = Field(None, description="Epochs already done when a checkpoint was taken up.")
    interruptions: list[Interruption] = Field(default_factory=list)
    notes: dict[str, Any] = Field(default_factory=dict, description="Figures of the trainer's own.")
