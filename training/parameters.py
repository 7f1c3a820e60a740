"""Parameters that several trainers share.

Owns: their names, bounds and defaults. Does not own: what one trainer adds. Light to import: the platform checks
parameters before a worker is started.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field

from throughline.experiment.parameters import CommonParameters


class GradientParameters(CommonParameters):
    """What `training.loop` needs of any torch model."""

    epochs: int = Field(8, ge=1, le=10_000)
    batch_size: int = Field(256, ge=1, description="Per worker.")
    learning_rate: float = Field(0.001, gt=0, le=1e30, validation_alias=AliasChoices("learning_rate", "lr"))
    weight_decay: float = Field(1e-4, ge=0)


class NetworkParameters(GradientParameters):
    """A multilayer perceptron over numbers and embedded categories."""

    hidden: list[int] = Field([128, 64], min_length=1, description="Widths of the hidden layers.")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: float = Field(0.1, ge=0, lt=1)
    embedding: int = Field(8, ge=1, description="Largest width of a category's embedding.")
