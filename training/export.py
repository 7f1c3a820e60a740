"""A torch module as ONNX and as `training.output` takes it.

Owns: the export. Does not own: the check of what was exported (`training.output`).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from throughline.experiment.prepared import Arrays, Facts
from throughline.models.onnx_graph import OPSET

if TYPE_CHECKING:
    import onnx

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Probability(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, logits: Logits | None) -> None:
        super().__init__()
        self.model, self._logits = model, logits

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid((self._logits or self.model)(numbers, codes))


class FittedModule:
    """A fitted module, which is moved to the CPU. `logits(numbers, codes)` calls it; None: these are its inputs."""

    def __init__(self, model: torch.nn.Module, facts: Facts, logits: Logits | None = None) -> None:
        self._model = _Probability(model, logits).cpu().eval()
        self._learned = facts.preprocessing

    def probability(self, rows: Arrays) -> np.ndarray:
        with torch.no_grad():
            numbers, codes = torch.tensor(rows.numbers), torch.tensor(rows.codes, dtype=torch.int64)
            return self._model(numbers, codes).reshape(-1).double().numpy()

    def export(self) -> onnx.ModelProto:
        """`(numbers [rows, K], codes [rows, M]) -> probability`."""
        import onnx  # postpones onnx (0.3 s), which only the worker that writes the model needs

        width, words = self._learned.width, len(self._learned.categorical)
        example = (torch.zeros(2, width), torch.zeros(2, words, dtype=torch.int64))
        names = ["numbers", "codes"]
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
            # The TorchScript exporter is deprecated, not gone: 0.4 s against 10 s of the new one, same operators.
            warnings.simplefilter("ignore", DeprecationWarning)
            file = Path(scratch) / "core.onnx"
            torch.onnx.export(
                self._model,
                example,
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=["score"],
                dynamic_axes={name: {0: "rows"} for name in (*names, "score")},
            )
            return onnx.load(str(file))
