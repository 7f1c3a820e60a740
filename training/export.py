"""A torch module as ONNX and as `training.output` takes it.

Owns: the export of `(numbers, codes) -> ...`. Does not own: the check of what was exported (`training.output`).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from throughline.experiment.prepared import Arrays, Facts
from throughline.models.onnx_graph import OPSET

if TYPE_CHECKING:
    import onnx


class _Probability(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.model(numbers, codes))


class FittedModule:
    """A fitted module `(numbers, codes) -> logits`, which is moved to the CPU."""

    def __init__(self, model: torch.nn.Module, facts: Facts) -> None:
        self._model = _Probability(model).cpu().eval()
        self._learned = facts.preprocessing

    def probability(self, rows: Arrays) -> np.ndarray:
        with torch.no_grad():
            numbers, codes = torch.tensor(rows.numbers), torch.tensor(rows.codes, dtype=torch.int64)
            return self._model(numbers, codes).double().numpy()

    def export(self) -> onnx.ModelProto:
        return export_module(self._model, self._learned.width, len(self._learned.categorical))


def export_module(model: torch.nn.Module, width: int, words: int) -> onnx.ModelProto:
    """A module `(numbers [rows, width], codes [rows, words]) -> probability`, on the CPU and in `eval()`."""
    import onnx  # postpones onnx (0.3 s), which only the worker that writes the model needs

    example = (torch.zeros(2, width), torch.zeros(2, words, dtype=torch.int64))
    names = ["numbers", "codes"]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        # The TorchScript exporter is deprecated, not gone: 0.4 s against 10 s of the new one for the same operators.
        warnings.simplefilter("ignore", DeprecationWarning)
        file = Path(scratch) / "core.onnx"
        torch.onnx.export(
            model,
            example,
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["score"],
            dynamic_axes={name: {0: "rows"} for name in (*names, "score")},
        )
        return onnx.load(str(file))
