"""What a training leaves: a checked model and a report, all or nothing.

Owns: the check of ONNX against the framework on real rows, the figures on validation rows, the output folder.
Does not own: fitting or exporting (a trainer), the format of the served model (`models/onnx_graph.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from throughline.experiment.prepared import Arrays, PreparedRows
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, Epoch, TrainingReport, TrainingSpec
from throughline.foundation.errors import ThroughlineError
from throughline.models.onnx_graph import compose, numeric_matrix
from throughline.models.served_model import ServedModel, sha256_of

if TYPE_CHECKING:
    import onnx

ONNX_TOLERANCE = 1e-5


class Fitted(Protocol):
    """A model that a framework has fitted."""

    def probability(self, rows: Arrays) -> np.ndarray:
        """Of the positive class, by the framework itself: float [rows]."""
        ...

    def export(self) -> onnx.ModelProto:
        """The model's core, as `models/onnx_graph.py` describes it; a whole model in the served format is taken
        as it is."""
        ...


def write_output(
    spec: TrainingSpec,
    rows: PreparedRows,
    fitted: Fitted,
    epochs: list[Epoch],
    started: float,
    told: dict[str, Any],
) -> TrainingReport:
    """Export, check, and put the output folder in place with one rename. `started`: on the monotonic clock."""
    output = Path(spec.output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        file = draft / MODEL_FILE
        file.write_bytes(_served(rows, fitted).SerializeToString())
        facts = rows.facts
        report = TrainingReport(
            sha256=sha256_of(file),
            rows_trained=facts.rows,
            rows_validation=facts.validation_rows,
            base_rate=facts.base_rate,
            trained_from=facts.trained_from,
            trained_until=facts.trained_until,
            epochs=epochs,
            onnx_difference=_compare(fitted, rows, file),
            **_validated(fitted, rows.validation),
            seconds=time.monotonic() - started,
            **told,
        )
        (draft / REPORT_FILE).write_text(json.dumps(report.model_dump(mode="json"), indent=2))
        if output.exists():
            shutil.rmtree(output)
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


def _served(rows: PreparedRows, fitted: Fitted) -> onnx.ModelProto:
    core = fitted.export()
    whole = any(entry.key == "throughline.numeric" for entry in core.metadata_props)
    return core if whole else compose(rows.facts.preprocessing, core)


def _compare(fitted: Fitted, rows: PreparedRows, file: Path) -> float:
    """Largest difference on real rows, from raw features to score. Raises when it is too large."""
    learned = rows.facts.preprocessing
    sample = rows.sample()
    # A row with nothing known at all, and words never seen: what serving will meet sooner or later.
    strange = sample.head(2).with_columns(
        *(pl.lit(None).cast(sample.schema[name]).alias(name) for name in learned.numeric),
        *(pl.lit("\N{SNOWMAN}").alias(name) for name in learned.categorical),
    )
    sample = pl.concat([sample, strange], how="vertical_relaxed")
    numbers = learned.numbers(numeric_matrix(sample, learned.numeric))
    codes = learned.codes(sample).astype(np.int32)
    expected = fitted.probability(Arrays(numbers, codes, np.zeros(sample.height, np.float32)))
    difference = float(np.max(np.abs(ServedModel.load(file, sha256_of(file)).score(sample) - expected)))
    if not difference <= ONNX_TOLERANCE:
        raise ThroughlineError(
            f"The exported model differs from the trained one by {difference:.2g} (allowed: {ONNX_TOLERANCE:g}): "
            "nothing was written; look at the operators of the model."
        )
    return difference


def _validated(fitted: Fitted, rows: Arrays) -> dict[str, float | None]:
    """Log loss and AUC on the validation rows; None where they cannot be had."""
    from sklearn.metrics import log_loss, roc_auc_score

    if len(rows) == 0:
        return {"validation_log_loss": None, "validation_auc": None}
    scores = np.asarray(fitted.probability(rows), dtype=np.float64)
    both = 0 < rows.labels.sum() < len(rows)
    return {
        "validation_log_loss": float(log_loss(rows.labels, scores, labels=[0, 1])),
        "validation_auc": float(roc_auc_score(rows.labels, scores)) if both else None,
    }
