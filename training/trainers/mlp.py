"""A multilayer perceptron over numbers and embedded categories, in PyTorch, by any number of workers.

Owns: architecture and parameters. Does not own: loop and export (`training.loop`).
"""

from __future__ import annotations

import math
import sys
from typing import Literal

from pydantic import AliasChoices, Field

from throughline.experiment.parameters import CommonParameters
from throughline.experiment.prepared import Facts
from training import worker


class Parameters(CommonParameters):
    epochs: int = Field(8, ge=1, le=10_000)
    batch_size: int = Field(256, ge=1, description="Per worker.")
    learning_rate: float = Field(0.001, gt=0, le=1e30, validation_alias=AliasChoices("learning_rate", "lr"))
    hidden: list[int] = Field([128, 64], min_length=1, description="Widths of the hidden layers.")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: float = Field(0.1, ge=0, lt=1)
    embedding: int = Field(8, ge=1, description="Largest width of a category's embedding.")
    weight_decay: float = Field(1e-4, ge=0)


def train(task: worker.Task, parameters: Parameters) -> None:
    # Here, because torch and Horovod take seconds, which a wrong parameter need not wait for.
    import torch

    from training import loop

    class Network(torch.nn.Module):
        """`(numbers [rows, K], codes [rows, M]) -> logits [rows]`; untrained, it predicts the base rate."""

        def __init__(self, facts: Facts) -> None:
            super().__init__()
            learned = facts.preprocessing
            sizes = [len(words) + 1 for words in learned.vocabularies]  # code 0: missing or unknown
            widths = [min(parameters.embedding, (size + 1) // 2) for size in sizes]
            self.embeddings = torch.nn.ModuleList(map(torch.nn.Embedding, sizes, widths))
            activation = {
                "relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh
            }[parameters.activation]  # fmt: skip
            layers, width = [], learned.width + sum(widths)
            for size in parameters.hidden:
                layers += [torch.nn.Linear(width, size), activation(), torch.nn.Dropout(parameters.dropout)]
                width = size
            self.body = torch.nn.Sequential(*layers)
            self.head = torch.nn.Linear(width, 1)
            torch.nn.init.zeros_(self.head.weight)
            torch.nn.init.constant_(self.head.bias, math.log(facts.base_rate / (1 - facts.base_rate)))

        def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            parts = [numbers, *(table(codes[:, place]) for place, table in enumerate(self.embeddings))]
            return self.head(self.body(torch.cat(parts, dim=1))).squeeze(1)

    loop.run(task, parameters, Network)


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
