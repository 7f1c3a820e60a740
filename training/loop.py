"""A training of a torch model by several workers, whatever the model and whatever connects them.

Owns: epochs, the learning rate, commits and checkpoints, numbers averaged over workers, bit-equal repetition, which
cores a worker keeps to, the export of a torch module. Does not own: architecture (a trainer), rows (`data.py`), the
other workers (`world.py`).

`batch_size` is per worker, as Horovod's documentation has it; the learning rate is taken as declared and falls to
zero over the training along a cosine. What is random in a step follows from seed, epoch, step and rank, so that a
training that goes on from a checkpoint is bit by bit the one that was never interrupted. After a change of the number
of workers the epoch goes on at the same share of its rows; some of them are then seen twice in it, others not at all.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from throughline.experiment.prepared import Arrays, Facts
from throughline.experiment.spec import Epoch, Interruption
from throughline.models.onnx_graph import OPSET
from training import checkpoint
from training.data import order_of, share_of, steps_of
from training.worker import Task, emit
from training.world import World, join

if TYPE_CHECKING:
    import onnx

COMMIT_STEPS = 50
PROGRESS_S = 5.0


class LoopParameters(Protocol):
    """What the loop itself wants to know of a trainer's parameters."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


def run(task: Task, parameters: LoopParameters, build: Callable[[Facts], torch.nn.Module]) -> None:
    """Train and write the output. `build(facts)` gives a module `(numbers, codes) -> logits [rows]`."""
    world = join()
    torch.set_num_threads(task.spec.threads)
    torch.manual_seed(parameters.seed)
    model = build(task.rows.facts).to(_device(task, world))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay, foreach=False
    )
    _initialise(optimizer)
    found = checkpoint.load(Path(task.spec.checkpoint), model, optimizer) if task.spec.checkpoint else None
    called = world.share(model, optimizer)
    loop = _Loop(task, parameters, world, model, called, optimizer)
    begin = {"epoch": 0, "step": 0, "steps": 0, "loss": 0.0, "epochs": (), "interruptions": ()}
    begin |= {"begun": False, "resumed_at": None}
    if found:
        begin |= {**found, "resumed_at": found["epoch"] + found["step"] / max(1, found["steps"])}
    world.run(loop.train, model=model, optimizer=optimizer, **begin)
    world.close()


class _Loop:
    def __init__(
        self,
        task: Task,
        parameters: LoopParameters,
        world: World,
        model: torch.nn.Module,
        called: Callable[..., torch.Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.task, self.parameters, self.world = task, parameters, world
        self.model, self.called, self.optimizer = model, called, optimizer
        self.device = next(model.parameters()).device
        self.cores = sorted(os.sched_getaffinity(0))
        self.saved = self.told = time.monotonic()
        self.committed: float | None = None

    def train(self, state: Any) -> None:
        """From wherever `state` stands to the end; called again when the world has changed."""
        task, world, parameters = self.task, self.world, self.parameters
        task.leads, task.workers = world.rank == 0, world.size
        self._keep_to_own_cores()
        self._account(state)
        rows = task.rows.train[share_of(len(task.rows.train), world.rank, world.size)]
        steps, _ = steps_of(len(rows), parameters.batch_size)
        if state.steps:  # with another number of workers an epoch has another number of steps
            state.step, state.loss = state.step * steps // state.steps, state.loss * steps / state.steps
        state.steps = steps
        while state.epoch < parameters.epochs:
            self._epoch(state, rows)
        task.write(
            _FittedModule(self.model, task.rows.facts),
            [Epoch(**epoch) for epoch in state.epochs],
            device=self.device.type,
            resumed_at=state.resumed_at,
            interruptions=[Interruption(**told) for told in state.interruptions],
        )
        # Nobody leaves before the model is written: a failure there must fail the launch of all.
        world.sum(torch.zeros(1), name="written")

    def _keep_to_own_cores(self) -> None:
        """Left to the scheduler, two workers that wake each other at every step end up sharing one core."""
        of_all = len(self.cores) // self.world.local_size
        if self.device.type == "cpu" and of_all:
            first = self.world.local_rank * of_all
            os.sched_setaffinity(0, self.cores[first : first + of_all])

    def _account(self, state: Any) -> None:
        if not state.begun:
            self.task.start()
            state.begun = True
        else:
            # One that has just come must know of it as well: it may be the one to write the report.
            seconds = 0.0 if self.committed is None else time.monotonic() - self.committed
            mine = torch.tensor([seconds, float(self.committed is not None)]).double()
            waited, witnesses = self.world.sum(mine, name="lost").tolist()
            lost = round(waited / max(1, witnesses), 2)
            told = {"epoch": state.epoch + 1, "workers": self.world.size, "seconds_lost": lost}
            state.interruptions = (*state.interruptions, told)
            if self.task.leads:
                emit("interruption", **told)
        self.committed = time.monotonic()
        state.commit()

    def _epoch(self, state: Any, rows: Arrays) -> None:
        parameters, world = self.parameters, self.world
        order = order_of(len(rows), parameters.batch_size, parameters.seed, state.epoch, world.rank)
        begun, first, fetching = time.monotonic(), state.step, 0.0
        self.model.train()
        total = torch.full((), state.loss, dtype=torch.float64, device=self.device)
        while state.step < len(order):
            fetch = time.perf_counter()
            numbers, codes, labels = self._tensors(rows[order[state.step]])
            fetching += time.perf_counter() - fetch
            self._prepare_step(state, len(order))
            self.optimizer.zero_grad()
            with self._precision():
                loss = binary_cross_entropy_with_logits(self.called(numbers, codes).float(), labels)
            loss.backward()
            world.average(self.model)
            self.optimizer.step()
            total += loss.detach()
            state.step += 1
            if state.step % COMMIT_STEPS == 0 and state.step < len(order):
                state.loss = self._mean(total)
                total.fill_(state.loss)
                done = (state.step - first) * order.shape[1] * world.size
                self._commit(state, samples_per_s=done / (time.monotonic() - begun))
        seconds = time.monotonic() - begun
        epoch = Epoch(
            epoch=state.epoch + 1,
            train_loss=self._mean(total) / len(order),
            validation_loss=self._validation_loss(),
            samples_per_s=round((len(order) - first) * order.shape[1] * world.size / max(seconds, 1e-9), 1),
            seconds=round(seconds, 3),
            data_share=round(fetching / max(seconds, 1e-9), 4),
        )
        self.task.epoch(epoch)
        state.epochs = (*state.epochs, epoch.model_dump())
        state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
        self._commit(state)

    def _prepare_step(self, state: Any, steps: int) -> None:
        """The learning rate and the random numbers of a step follow from where it stands."""
        parameters = self.parameters
        done = (state.epoch + state.step / steps) / parameters.epochs
        for group in self.optimizer.param_groups:
            group["lr"] = parameters.learning_rate * (1 + math.cos(math.pi * done)) / 2
        place = f"{parameters.seed}/{state.epoch}/{state.step}/{self.world.rank}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:7])
        # Not torch.manual_seed: without a GPU it keeps each call, with its stack, for the day CUDA is used.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _commit(self, state: Any, **told: float) -> None:
        now = time.monotonic()
        folder = self.task.spec.checkpoint
        if folder and self.task.leads and now - self.saved >= self.task.spec.checkpoint_s:
            kept = ("epoch", "step", "steps", "loss", "epochs", "interruptions")
            checkpoint.save(Path(folder), self.model, self.optimizer, {name: getattr(state, name) for name in kept})
            self.saved = time.monotonic()
            emit("checkpoint", epoch=state.epoch, step=state.step)
        if told and self.task.leads and now - self.told >= PROGRESS_S:
            share = round(state.step / state.steps, 3)
            emit("progress", epoch=state.epoch + 1, share=share, train_loss=state.loss / state.step, **told)
            self.told = now
        self.committed = time.monotonic()
        state.commit()

    def _mean(self, total: torch.Tensor) -> float:
        return float(self.world.sum(total.reshape(1).cpu(), name="loss")) / self.world.size

    def _validation_loss(self) -> float | None:
        """Each worker judges its own part of the validation rows; sums and counts are what is added up."""
        rows = self.task.rows.validation
        mine = rows[np.arange(self.world.rank, len(rows), self.world.size)]  # a copy: torch wants what it may write to
        self.model.eval()
        with torch.no_grad():
            numbers, codes, labels = self._tensors(mine)
            loss = binary_cross_entropy_with_logits(self.model(numbers, codes), labels, reduction="sum")
        total, count = self.world.sum(torch.tensor([float(loss), len(mine)]).double(), name="validation")
        return float(total / count) if count else None

    def _tensors(self, rows: Arrays) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(
            torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)
            for values in (rows.numbers, rows.codes, rows.labels)
        )

    def _precision(self) -> torch.autocast:
        name = self.task.spec.precision
        return torch.autocast(self.device.type, dtype=getattr(torch, name), enabled=name != "float32")


def _initialise(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter its optimizer state now. Horovod would do so by a step that counts and decays weights."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        state["step"].zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _device(task: Task, world: World) -> torch.device:
    if task.spec.device == "cpu" or (task.spec.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)


class _Probability(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.model(numbers, codes))


class _FittedModule:
    """A torch module `(numbers, codes) -> logits` as `training.output` wants it."""

    def __init__(self, model: torch.nn.Module, facts: Facts) -> None:
        self._model = _Probability(model).cpu().eval()
        self._learned = facts.preprocessing

    def probability(self, rows: Arrays) -> np.ndarray:
        with torch.no_grad():
            numbers, codes = torch.tensor(rows.numbers), torch.tensor(rows.codes, dtype=torch.int64)
            return self._model(numbers, codes).double().numpy()

    def export(self) -> onnx.ModelProto:
        width, words = self._learned.width, len(self._learned.categorical)
        return export_module(self._model, width, words)


def export_module(model: torch.nn.Module, width: int, words: int) -> onnx.ModelProto:
    """A module `(numbers, codes) -> probability` as ONNX. It must be on the CPU and in `eval()`."""
    import onnx

    example = (torch.zeros(2, width), torch.zeros(2, words, dtype=torch.int64))
    names = ["numbers", "codes"]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        # The TorchScript exporter is deprecated, not gone: 0.4 s against 10 s of the new one for the same operators.
        warnings.simplefilter("ignore", DeprecationWarning)
        file = Path(scratch) / "core.onnx"
        torch.onnx.export(
            model,
            example,
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["score"],
            dynamic_axes={name: {0: "rows"} for name in (*names, "score")},
        )
        return onnx.load(str(file))
