"""The architecture of the multilayer perceptron: numbers beside embedded categories.

Owns: layers and their first weights. Does not own: parameters (`training.parameters`), loop (`training.loop`).
"""

from __future__ import annotations

import math

import torch

from throughline.experiment.prepared import Facts
from training.parameters import NetworkParameters

_ACTIVATIONS = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh}


class Network(torch.nn.Module):
    """`(numbers [rows, K], codes [rows, M]) -> logits [rows]`; untrained, it predicts the base rate."""

    def __init__(self, parameters: NetworkParameters, facts: Facts) -> None:
        super().__init__()
        learned = facts.preprocessing
        sizes = [len(words) + 1 for words in learned.vocabularies]  # code 0: missing or unknown
        widths = [min(parameters.embedding, (size + 1) // 2) for size in sizes]
        self.embeddings = torch.nn.ModuleList(map(torch.nn.Embedding, sizes, widths))
        layers, width = [], learned.width + sum(widths)
        for size in parameters.hidden:
            dropout = torch.nn.Dropout(parameters.dropout)
            layers += [torch.nn.Linear(width, size), _ACTIVATIONS[parameters.activation](), dropout]
            width = size
        self.body = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.constant_(self.head.bias, math.log(facts.base_rate / (1 - facts.base_rate)))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        parts = [numbers, *(table(codes[:, place]) for place, table in enumerate(self.embeddings))]
        return self.head(self.body(torch.cat(parts, dim=1))).squeeze(1)
