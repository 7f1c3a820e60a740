"""The other workers of a training, whatever connects them: Horovod, Horovod's elastic mode, torch.distributed, nobody.

Owns: joining, gradients and numbers summed over workers, going on after a worker was lost. Does not own: what is
trained, who takes which rows. Which world it is, the launcher says through the environment, as each engine has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import torch


class World(Protocol):
    """`rank` and `size` may change between two calls of the function given to `run`, and never within one."""

    elastic: bool

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def local_rank(self) -> int:
        """Which of a machine's devices is ours."""
        ...

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """(model to call, optimizer to step): from here on gradients are means over all workers, and when `run` calls,
        all have the weights and the optimizer state of the first."""
        ...

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        """Over all workers; also a point that nobody passes before all have come to it."""
        ...

    def run(self, train: Callable[[Any], None], **values: Any) -> None:
        """Call `train(state)`, where `values` are attributes of `state` and `state.commit()` makes them safe.

        In an elastic world it is called again after workers were lost or came, with everything as last committed.
        """
        ...

    def close(self) -> None: ...


def join() -> World:
    """The world that the launcher of this process has made."""
    if "HOROVOD_ELASTIC" in os.environ:
        return HorovodWorld(elastic=True)
    if "HOROVOD_RANK" in os.environ:
        return HorovodWorld(elastic=False)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return TorchWorld()
    return Alone()


class Alone:
    """One worker that needs nobody."""

    elastic = False
    rank, size, local_rank = 0, 1, 0

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return model, optimizer

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return values

    def run(self, train: Callable[[Any], None], **values: Any) -> None:
        train(SimpleNamespace(**values, commit=lambda: None))

    def close(self) -> None:
        return


class HorovodWorld:
    """Horovod over Gloo on CPUs, over NCCL where it was built for it."""

    def __init__(self, elastic: bool) -> None:
        import horovod.torch as hvd

        hvd.init()
        self._hvd = hvd
        self.elastic = elastic

    @property
    def rank(self) -> int:
        return self._hvd.rank()

    @property
    def size(self) -> int:
        return self._hvd.size()

    @property
    def local_rank(self) -> int:
        return self._hvd.local_rank()

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        # One group: all gradients are reduced as one block, so that sums are taken in the same order in every run.
        # Not in an elastic world, where a group that was interrupted half-way is never whole again.
        groups = None if self.elastic else 1
        shared = self._hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), groups=groups)
        # Horovod's is a new one that knows nothing yet: what a checkpoint brought must not be forgotten.
        shared.load_state_dict(optimizer.state_dict())
        # In an elastic world `run` does so: one that comes later would speak here of what the others no longer hear.
        if not self.elastic:
            self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)
            self._hvd.broadcast_optimizer_state(shared, root_rank=0)
        return model, shared

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return self._hvd.allreduce(values, op=self._hvd.Sum, name=name)

    def run(self, train: Callable[[Any], None], **values: Any) -> None:
        if not self.elastic:
            train(SimpleNamespace(**values, commit=lambda: None))
            return
        import horovod.torch.elastic as elastic

        elastic.run(train)(elastic.TorchState(**values))

    def close(self) -> None:
        self._hvd.shutdown()


class TorchWorld:
    """torch.distributed under torchrun: the same training without Horovod."""

    elastic = False

    def __init__(self) -> None:
        from torch import distributed

        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self._distributed = distributed

    @property
    def rank(self) -> int:
        return self._distributed.get_rank()

    @property
    def size(self) -> int:
        return self._distributed.get_world_size()

    @property
    def local_rank(self) -> int:
        return int(os.environ["LOCAL_RANK"])

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return torch.nn.parallel.DistributedDataParallel(model), optimizer

    def sum(self, values: torch.Tensor, name: str) -> torch.Tensor:
        # NCCL has no sums of tensors in the memory of the CPU
        device = torch.device("cuda", self.local_rank) if torch.cuda.is_available() else values.device
        summed = values.to(device).clone()
        self._distributed.all_reduce(summed)
        return summed.to(values.device)

    def run(self, train: Callable[[Any], None], **values: Any) -> None:
        train(SimpleNamespace(**values, commit=lambda: None))

    def close(self) -> None:
        self._distributed.destroy_process_group()
