"""Where a training stood: weights, optimizer state and progress in one file, from which a restarted one goes on.

Owns: the file, replaced with one rename. Safetensors, so that reading it runs no code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILE = "checkpoint.safetensors"


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """`progress` is whatever JSON can hold."""
    tensors = {f"model/{name}": value.contiguous() for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{FILE}"
    save_file(tensors, draft, metadata={"progress": json.dumps(progress)})
    draft.replace(folder / FILE)


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put weights and optimizer state back; the progress, or None when there is no checkpoint."""
    if not (folder / FILE).exists():
        return None
    weights: dict[str, torch.Tensor] = {}
    states: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(folder / FILE, framework="pt") as file:
        progress = json.loads(file.metadata()["progress"])
        for key in file.keys():  # noqa: SIM118 - not a mapping
            kind, _, name = key.partition("/")
            if kind == "model":
                weights[name] = file.get_tensor(key)
            else:
                number, _, name = name.partition("/")
                states.setdefault(int(number), {})[name] = file.get_tensor(key)
    model.load_state_dict(weights)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
