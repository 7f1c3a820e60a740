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
from torch.nn.utils import parameters_to_vector, vector_to_parameters


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

    @property
    def local_size(self) -> int:
        """Workers on this machine."""
        ...

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        """The module to call. When `run` calls, all have the weights and the optimizer state of the first."""
        ...

    def average(self, model: torch.nn.Module) -> None:
        """Between `backward` and the step: each gradient becomes its mean over all workers."""
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
    rank, size, local_rank, local_size = 0, 1, 0, 1

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        return model

    def average(self, model: torch.nn.Module) -> None:
        return

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

    @property
    def local_size(self) -> int:
        return self._hvd.local_size()

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        # In an elastic world `run` does so: one that comes later would speak here of what the others no longer hear.
        if not self.elastic:
            self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)
            self._hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        return model

    def average(self, model: torch.nn.Module) -> None:
        if self.size == 1:
            return
        # Not by Horovod's own optimizer, which reduces gradients as they come: as one tensor they are summed in the
        # same order in every run, after one agreement between the workers instead of many.
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        mean = self._hvd.allreduce_(parameters_to_vector(gradients), op=self._hvd.Average, name="gradients")
        vector_to_parameters(mean, gradients)

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

    @property
    def local_size(self) -> int:
        return int(os.environ["LOCAL_WORLD_SIZE"])

    def share(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(model)

    def average(self, model: torch.nn.Module) -> None:
        """DDP did so within `backward`."""

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
