"""The fit of a torch model by one or several workers.

Owns: epochs, the learning rate, commits and checkpoints, numbers averaged over workers, which cores a worker keeps to.
Does not own: architecture (a trainer), rows (`data.py`), the other workers (`world.py`), the export (`export.py`).

`batch_size` is per worker; the learning rate falls to zero along a cosine. What is random in a step follows from seed,
epoch, step and rank: a training that was resumed gives bit by bit the model of an undisturbed one. When the number of
workers changes, an epoch continues at the same share of its rows; some rows are then seen twice in it, others never.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from throughline.experiment.prepared import Arrays, Facts
from throughline.experiment.spec import Epoch, Interruption
from throughline.launch.protocol import emit
from training import checkpoint
from training.data import order_of, share_of, steps_of
from training.export import FittedModule
from training.optimizer import AdamW
from training.parameters import GradientParameters
from training.worker import Task
from training.world import World, join

COMMIT_STEPS = 50
PROGRESS_S = 5.0
_BEGINNING = {"epoch": 0, "step": 0, "steps": 0, "loss": 0.0, "epochs": (), "interruptions": ()}


class State(Protocol):
    """How far a training is. Workers agree on it at each commit, and a checkpoint keeps it."""

    epoch: int  # epochs that are complete
    step: int  # steps done of the next one
    steps: int  # steps of an epoch
    loss: float  # sum over those done, as a mean of the workers
    epochs: tuple[dict[str, Any], ...]
    interruptions: tuple[dict[str, Any], ...]
    begun: bool
    resumed_at: float | None

    def commit(self) -> None: ...


def run(task: Task, parameters: GradientParameters, build: Callable[[Facts], torch.nn.Module]) -> None:
    """Train and write the output. `build(facts)` gives a module `(numbers, codes) -> logits [rows]`."""
    world = join()
    torch.set_num_threads(task.spec.threads)
    torch.manual_seed(parameters.seed)
    model = build(task.rows.facts).to(_device(task, world))
    loop = _Loop(task, parameters, world, model)
    resumed = checkpoint.load(Path(task.spec.checkpoint), loop.modules) if task.spec.checkpoint else None
    place = resumed and resumed["epoch"] + resumed["step"] / max(1, resumed["steps"])
    loop.called = world.share(model, loop.optimizer)
    state = {**_BEGINNING, **(resumed or {}), "begun": False, "resumed_at": place}
    world.run(loop.train, {**loop.modules, **state})
    world.close()


class _Loop:
    def __init__(self, task: Task, parameters: GradientParameters, world: World, model: torch.nn.Module) -> None:
        self.task, self.parameters, self.world = task, parameters, world
        self.model, self.called = model, model
        self.optimizer = AdamW(model, parameters.weight_decay)
        self.device = next(model.parameters()).device
        self.cores = sorted(os.sched_getaffinity(0))
        self.checkpointed = self.reported = time.monotonic()
        self.committed: float | None = None

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model, "optimizer": self.optimizer}

    def train(self, state: State) -> None:
        """From `state` to the end; an elastic world calls it again when workers were lost or joined."""
        task, world, parameters = self.task, self.world, self.parameters
        task.leads, task.workers = world.rank == 0, world.size
        self._keep_to_own_cores()
        self._report_start(state)
        rows = task.rows.train[share_of(len(task.rows.train), world.rank, world.size)]
        steps, _ = steps_of(len(rows), parameters.batch_size)
        if state.steps:  # with another number of workers an epoch has another number of steps
            state.step, state.loss = state.step * steps // state.steps, state.loss * steps / state.steps
        state.steps = steps
        task.epochs = [Epoch(**epoch) for epoch in state.epochs]
        while state.epoch < parameters.epochs:
            self._epoch(state, rows)
        task.write(
            FittedModule(self.model, task.rows.facts),
            device=self.device.type,
            resumed_at=state.resumed_at,
            interruptions=[Interruption(**interruption) for interruption in state.interruptions],
        )
        # No worker leaves before the model is written: a failure there must fail the launch of all.
        world.sum(torch.zeros(1), name="written")

    def _keep_to_own_cores(self) -> None:
        """Left to the scheduler, two workers that wake each other at every step end up sharing one core."""
        of_each = len(self.cores) // self.world.local_size
        if self.device.type == "cpu" and of_each:
            first = self.world.local_rank * of_each
            os.sched_setaffinity(0, self.cores[first : first + of_each])

    def _report_start(self, state: State) -> None:
        """The start of a training, or the interruption after which this is a new attempt."""
        if not state.begun:
            self.task.start()
            state.begun = True
        else:
            # A worker that has just joined has no commit, but may be the one that writes the report.
            seconds = 0.0 if self.committed is None else time.monotonic() - self.committed
            own = torch.tensor([seconds, float(self.committed is not None)]).double()
            waited, witnesses = self.world.sum(own, name="lost").tolist()
            lost = round(waited / max(1, witnesses), 2)
            interruption = {"epoch": state.epoch + 1, "workers": self.world.size, "seconds_lost": lost}
            state.interruptions = (*state.interruptions, interruption)
            if self.task.leads:
                emit("interruption", **interruption)
        self.committed = time.monotonic()
        state.commit()

    def _epoch(self, state: State, rows: Arrays) -> None:
        parameters, world = self.parameters, self.world
        order = order_of(len(rows), parameters.batch_size, parameters.seed, state.epoch, world.rank)
        begun, first, fetching = time.monotonic(), state.step, 0.0
        self.model.train()
        total = torch.full((), state.loss, dtype=torch.float64, device=self.device)
        while state.step < len(order):
            fetch = time.perf_counter()
            numbers, codes, labels = self._tensors(rows[order[state.step]])
            fetching += time.perf_counter() - fetch
            learning_rate = self._begin_step(state, len(order))
            self.optimizer.zero_grad()
            with self._precision():
                loss = binary_cross_entropy_with_logits(self.called(numbers, codes).float(), labels)
            loss.backward()
            world.average(self.optimizer.gradient)
            self.optimizer.step(learning_rate)
            total += loss.detach()
            state.step += 1
            if state.step % COMMIT_STEPS == 0 and state.step < len(order):
                state.loss = self._mean(total)
                total.fill_(state.loss)
                done = (state.step - first) * order.shape[1] * world.size
                self._commit(state, samples_per_s=done / (time.monotonic() - begun))
        mean = self._mean(total)  # before the clock is read: it waits for steps that are still queued on a GPU
        seconds = time.monotonic() - begun
        rows_done = (len(order) - first) * order.shape[1] * world.size
        share = round(fetching / max(seconds, 1e-9), 4)
        epoch = self.task.epoch(mean / len(order), self._validation_loss(), rows_done, seconds, share)
        state.epochs = (*state.epochs, epoch.model_dump())
        state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
        self._commit(state)

    def _begin_step(self, state: State, steps: int) -> float:
        """Seed the random numbers of a step, and return its learning rate."""
        parameters = self.parameters
        place = f"{parameters.seed}/{state.epoch}/{state.step}/{self.world.rank}"
        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:7])
        # Not torch.manual_seed: without a GPU it keeps each call, with its stack, for the day CUDA is used.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        done = (state.epoch + state.step / steps) / parameters.epochs
        return parameters.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def _commit(self, state: State, samples_per_s: float | None = None) -> None:
        """Keep `state` for all workers, now and then as a checkpoint. `samples_per_s`: within an epoch."""
        folder, now = self.task.spec.checkpoint, time.monotonic()
        if folder and self.task.leads and now - self.checkpointed >= self.task.spec.checkpoint_s:
            checkpoint.save(Path(folder), self.modules, {name: getattr(state, name) for name in _BEGINNING})
            self.checkpointed = time.monotonic()
            emit("checkpoint", epoch=state.epoch, step=state.step)
        if samples_per_s is not None and self.task.leads and now - self.reported >= PROGRESS_S:
            figures = {"train_loss": state.loss / state.step, "samples_per_s": samples_per_s}
            emit("progress", epoch=state.epoch + 1, share=round(state.step / state.steps, 3), **figures)
            self.reported = now
        self.committed = time.monotonic()
        state.commit()

    def _mean(self, total: torch.Tensor) -> float:
        return float(self.world.sum(total.reshape(1).cpu(), name="loss")) / self.world.size

    def _validation_loss(self) -> float | None:
        """Mean log loss of all validation rows, of which each worker takes its own part; None without rows."""
        rows = self.task.rows.validation
        own = rows[np.arange(self.world.rank, len(rows), self.world.size)]  # a copy: torch needs writable memory
        self.model.eval()
        with torch.no_grad():
            numbers, codes, labels = self._tensors(own)
            loss = binary_cross_entropy_with_logits(self.model(numbers, codes), labels, reduction="sum")
        total, count = self.world.sum(torch.tensor([float(loss), len(own)]).double(), name="validation")
        return float(total / count) if count else None

    def _tensors(self, rows: Arrays) -> list[torch.Tensor]:
        """Numbers, codes and labels on this worker's device."""
        tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in (rows.numbers, rows.codes, rows.labels)]
        if self.device.type == "cuda":
            # From pinned memory a copy is queued; from other memory it would wait for the steps before it.
            tensors = [each.pin_memory().to(self.device, non_blocking=True) for each in tensors]
        return tensors

    def _precision(self) -> torch.autocast:
        name = self.task.spec.precision
        return torch.autocast(self.device.type, dtype=getattr(torch, name), enabled=name != "float32")


def _device(task: Task, world: World) -> torch.device:
    if task.spec.device == "cpu" or (task.spec.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    torch.cuda.set_device(world.local_rank)
    return torch.device("cuda", world.local_rank)
