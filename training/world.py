"""The workers of one training: Horovod, Horovod's elastic mode, torch.distributed, or a single process.

Owns: joining, sums and means over workers, going on after a worker was lost. Does not own: what is trained, which
worker takes which rows. The launcher names the engine through the engine's own environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch


class World:
    """A single process, which loads no engine; the engines' worlds derive from it.

    `rank` and `size` may change between two calls of the function given to `run`, and never within one. `local_rank`
    and `local_size` count the workers of this machine; a worker's GPU is its `local_rank`.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def share(self, model: torch.nn.Module, optimizer: torch.nn.Module) -> torch.nn.Module:
        """The module to call. When `run` calls, all workers have the tensors of rank 0."""
        return model

    def average(self, gradient: torch.Tensor) -> None:
        """Replace the gradient of this worker by the mean over all workers, after `backward`."""

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """The sum over all workers; returns when every worker has called it."""
        return values

    def run(self, train: Callable[[Any], None], values: Mapping[str, Any]) -> None:
        """Call `train(state)` with `values` as attributes of `state`; `state.commit()` keeps them.

        An elastic world calls it again, with everything as last committed, after workers were lost or joined.
        """
        train(SimpleNamespace(**values, commit=lambda: None))

    def close(self) -> None:
        """Leave the other workers."""


class HorovodWorld(World):
    """Horovod: Gloo on CPUs, NCCL where it was built with it."""

    def __init__(self, elastic: bool) -> None:
        import horovod.torch as hvd  # postpones horovod, which only its own launchers need

        hvd.init()
        self._hvd, self._elastic = hvd, elastic
        self._find_place()

    def _find_place(self) -> None:
        hvd = self._hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def share(self, model: torch.nn.Module, optimizer: torch.nn.Module) -> torch.nn.Module:
        # An elastic `run` broadcasts by itself; here a worker that joins later would never return.
        if not self._elastic:
            for module in (model, optimizer):
                self._hvd.broadcast_parameters(module.state_dict(), root_rank=0)
        return model

    def average(self, gradient: torch.Tensor) -> None:
        # Not by Horovod's own optimizer, which reduces gradients in the order in which they come: one tensor is summed
        # in the same order in every run, after one agreement between the workers instead of many (decision 015).
        if self.size > 1:
            self._hvd.allreduce_(gradient, op=self._hvd.Average, name="gradients")

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return self._hvd.allreduce(values, op=self._hvd.Sum, name=name)

    def run(self, train: Callable[[Any], None], values: Mapping[str, Any]) -> None:
        if not self._elastic:
            return super().run(train, values)
        import horovod.torch.elastic as elastic  # postpones horovod

        def attempt(state: Any) -> None:
            self._find_place()
            train(state)

        elastic.run(attempt)(elastic.TorchState(**values))

    def close(self) -> None:
        self._hvd.shutdown()


class TorchWorld(World):
    """torch.distributed under torchrun: the same training without Horovod."""

    def __init__(self) -> None:
        from torch import distributed  # postpones torch.distributed

        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self._distributed = distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank, self.local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])

    def share(self, model: torch.nn.Module, optimizer: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(model)

    def average(self, gradient: torch.Tensor) -> None:
        """DDP does so within `backward`."""

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        # NCCL sums only tensors in a GPU's memory.
        device = torch.device("cuda", self.local_rank) if torch.cuda.is_available() else values.device
        summed = values.to(device).clone()
        self._distributed.all_reduce(summed)
        return summed.to(values.device)

    def close(self) -> None:
        self._distributed.destroy_process_group()


def join() -> World:
    """The world of the launcher that started this process."""
    if "HOROVOD_RANK" in os.environ or "HOROVOD_ELASTIC" in os.environ:
        return HorovodWorld(elastic="HOROVOD_ELASTIC" in os.environ)
    return TorchWorld() if "TORCHELASTIC_RUN_ID" in os.environ else World()
