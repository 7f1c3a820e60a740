"""AdamW over all parameters of a model as one vector.

Owns: the update, and where weights and gradients lie in memory. Does not own: the learning rate's schedule.
Not `torch.optim`: its first step imports torch's compiler, 4 s of a core in every worker. The arithmetic is that of
`torch.optim.AdamW`, bit by bit. One vector, because a step is then seven operations instead of seven per parameter,
and workers average all gradients by one message without copying them.
"""

from __future__ import annotations

import math

import torch
from torch.nn.utils import parameters_to_vector

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class AdamW(torch.nn.Module):
    """A module, so that its buffers are saved, restored and broadcast like a model's.

    It moves the model's parameters and gradients into `weights` and `gradient`, float32 [all parameters]; moving the
    model to another device afterwards takes them out again.
    """

    mean: torch.Tensor
    square: torch.Tensor
    steps: torch.Tensor

    def __init__(self, model: torch.nn.Module, weight_decay: float) -> None:
        super().__init__()
        parameters = list(model.parameters())
        self.weight_decay = weight_decay
        self.weights = parameters_to_vector(parameters).detach()
        self.gradient = torch.zeros_like(self.weights)
        self.register_buffer("mean", torch.zeros_like(self.weights))
        self.register_buffer("square", torch.zeros_like(self.weights))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        end = 0
        for parameter in parameters:
            start, end = end, end + parameter.numel()
            parameter.data = self.weights[start:end].view_as(parameter)
            parameter.grad = self.gradient[start:end].view_as(parameter)  # `backward` adds to it in place

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Gradients stay where they are."""
        self.gradient.zero_()

    def step(self, learning_rate: float) -> None:
        """One update by `gradient`."""
        self.steps += 1
        count = int(self.steps)
        self.weights.mul_(1 - learning_rate * self.weight_decay)
        self.mean.lerp_(self.gradient, 1 - BETA1)
        self.square.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        spread = (self.square.sqrt() / math.sqrt(1 - BETA2**count)).add_(EPSILON)
        self.weights.addcdiv_(self.mean, spread, value=-learning_rate / (1 - BETA1**count))
