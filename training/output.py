"""What a training leaves: a checked model and a report, all or nothing.

Owns: the check of ONNX against the framework on real rows, the figures on validation rows, the output folder.
Does not own: fitting or exporting (a trainer), the format of the served model (`models/onnx_graph.py`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from throughline.experiment.prepared import Arrays, PreparedRows
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, TrainingReport, TrainingSpec
from throughline.foundation.errors import ThroughlineError
from throughline.models.metrics import metrics_of
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
    spec: TrainingSpec, rows: PreparedRows, fitted: Fitted, started: float, fields: dict[str, Any]
) -> TrainingReport:
    """Export, check, and put the output folder in place with one rename.

    `started`: seconds of the monotonic clock. `fields`: more of the report. Raises `ThroughlineError` when the exported
    model differs from the fitted one.
    """
    output = Path(spec.output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        file = draft / MODEL_FILE
        file.write_bytes(_served(rows, fitted).SerializeToString())
        log_loss, area = _validated(fitted, rows.validation)
        report = TrainingReport(
            **rows.facts.model_dump(exclude={"preprocessing"}),
            sha256=sha256_of(file),
            onnx_difference=_compare(fitted, rows, file),
            validation_log_loss=log_loss,
            validation_auc=area,
            seconds=time.monotonic() - started,
            **fields,
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
    # Serving meets rows without any value and words that training never saw.
    unusual = sample.head(2).with_columns(
        *(pl.lit(None).cast(sample.schema[name]).alias(name) for name in learned.numeric),
        *(pl.lit("\N{SNOWMAN}").alias(name) for name in learned.categorical),
    )
    sample = pl.concat([sample, unusual], how="vertical_relaxed")
    numbers = learned.numbers(numeric_matrix(sample, learned.numeric))
    codes = learned.codes(sample).astype(np.int32)
    expected = fitted.probability(Arrays(numbers, codes, np.zeros(sample.height, np.float32)))
    difference = float(np.max(np.abs(ServedModel.load(file, sha256_of(file)).score(sample) - expected)))
    if not difference <= ONNX_TOLERANCE:
        found = f"{difference:.2g} (allowed: {ONNX_TOLERANCE:g})"
        remedy = "nothing was written; look at the operators of the model"
        raise ThroughlineError(f"The exported model differs from the trained one by {found}: {remedy}.")
    return difference


def _validated(fitted: Fitted, rows: Arrays) -> tuple[float | None, float | None]:
    """Log loss and AUC on the validation rows; None where there is no such number."""
    if len(rows) == 0:
        return None, None
    found = metrics_of(np.clip(fitted.probability(rows), 0, 1), rows.labels)
    if math.isnan(found.log_loss):
        remedy = "nothing was written; look for absurd feature values"
        raise ThroughlineError(f"The fitted model gives scores on validation rows that are no numbers: {remedy}.")
    return found.log_loss, None if math.isnan(found.auc) else found.auc
