"""A multilayer perceptron over numbers and embedded categories, in PyTorch, by any number of workers.

Owns: the entry of the worker. Does not own: architecture (`training.network`), loop (`training.loop`).
"""

from __future__ import annotations

import sys

from training import worker
from training.parameters import NetworkParameters as Parameters


def train(task: worker.Task, parameters: Parameters) -> None:
    from training import loop  # postpones torch (2 s), which checking parameters does not need
    from training.network import Network

    loop.run(task, parameters, lambda facts: Network(parameters, facts))


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
