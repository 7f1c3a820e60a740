"""Our AdamW is torch's, over one vector."""

from __future__ import annotations

import pytest
import torch

from training.optimizer import AdamW


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.GELU(), torch.nn.Linear(7, 1))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_weights_are_bit_by_bit_those_of_torch(weight_decay):
    ours, theirs = network(), network()
    optimizer = AdamW(ours, weight_decay)
    reference = torch.optim.AdamW(theirs.parameters(), weight_decay=weight_decay, foreach=False)
    for step in range(25):
        rows, rate = torch.randn(8, 5), 0.01 / (1 + step)
        optimizer.zero_grad()
        ours(rows).square().mean().backward()
        optimizer.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.zero_grad()
        theirs(rows).square().mean().backward()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_and_gradients_stay_views_of_one_vector_when_they_are_loaded_and_zeroed():
    model = network()
    optimizer = AdamW(model, 0.0)
    saved = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(saved)
    assert torch.equal(optimizer.weights, torch.ones_like(optimizer.weights))
    model(torch.ones(2, 5)).sum().backward()
    assert optimizer.gradient.abs().sum() > 0
    optimizer.zero_grad()
    assert all(not parameter.grad.any() for parameter in model.parameters())
