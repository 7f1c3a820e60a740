"""The checkpoint of a training, from which a restarted one continues.

Owns: the file, which is replaced as a whole. Safetensors, so that reading it runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialised

from throughline.foundation.files import write_atomic

FILE = "checkpoint.safetensors"


def save(folder: Path, modules: Mapping[str, torch.nn.Module], progress: Mapping[str, Any]) -> None:
    """Write the tensors of all `modules` and `progress`, which JSON can hold."""
    tensors = {
        f"{part}/{name}": value for part, module in modules.items() for name, value in module.state_dict().items()
    }
    write_atomic(folder / FILE, serialised(tensors, metadata={"progress": json.dumps(progress)}))


def load(folder: Path, modules: Mapping[str, torch.nn.Module]) -> dict[str, Any] | None:
    """Fill `modules` and return the progress; None when there is no checkpoint."""
    if not (folder / FILE).exists():
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        for part, module in modules.items():
            module.load_state_dict({name: file.get_tensor(f"{part}/{name}") for name in module.state_dict()})
        return json.loads(file.metadata()["progress"])
