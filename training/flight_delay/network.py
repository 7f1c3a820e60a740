"""The network of `flight_delay`: a multilayer perceptron over numbers and embedded categories.

Owns: the architecture. Does not own: its parameters (`train.py`), preprocessing, the loop.
"""

from __future__ import annotations

import math

import torch

from throughline.registry.onnx_graph import Preprocessing


class Network(torch.nn.Module):
    """`(numbers [rows, K], codes [rows, M]) -> logits [rows]`; untrained, it predicts the base rate."""

    def __init__(
        self, preprocessing: Preprocessing, base_rate: float, hidden: list[int], dropout: float, embedding: int
    ) -> None:
        super().__init__()
        sizes = [len(words) + 1 for words in preprocessing.vocabularies]  # code 0: missing or unknown
        widths = [min(embedding, (size + 1) // 2) for size in sizes]
        self.embeddings = torch.nn.ModuleList(map(torch.nn.Embedding, sizes, widths))
        layers, width = [], preprocessing.width + sum(widths)
        for size in hidden:
            layers += [torch.nn.Linear(width, size), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
            width = size
        self.body = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.constant_(self.head.bias, math.log(base_rate / (1 - base_rate)))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        parts = [numbers, *(table(codes[:, place]) for place, table in enumerate(self.embeddings))]
        return self.head(self.body(torch.cat(parts, dim=1))).squeeze(1)
