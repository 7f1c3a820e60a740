"""A training under Horovod, whatever the model: workers, epochs, metrics, export, the output folder.

Owns: initial state and gradients in step on all workers, numbers averaged over them, bit-equal repetition, the check
of ONNX against torch, the output all or nothing. Does not own: architecture (a use case's folder), rows (`data.py`).
Runs alone, too: a world of one worker.

`batch_size` is per worker, as Horovod's documentation has it; the learning rate is taken as declared and falls to
zero over the training along a cosine.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import horovod.torch as hvd
import numpy as np
import polars as pl
import torch

from throughline.errors import ThroughlineError
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, Epoch, TrainingReport, TrainingSpec
from throughline.registry.onnx_graph import OPSET, Preprocessing, compose, learn_preprocessing, numeric_matrix
from throughline.registry.served_model import ServedModel, sha256_of
from training.data import Rows, load_rows, shard
from training.tracking import MetricLog
from training.worker import emit

if TYPE_CHECKING:
    import onnx

ONNX_TOLERANCE = 1e-5
_ROWS_COMPARED = 2000


class LoopParameters(Protocol):
    """What the loop itself wants to know of a use case's parameters."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


BuildModel = Callable[[Preprocessing, float], torch.nn.Module]


def run(spec: TrainingSpec, parameters: LoopParameters, build: BuildModel) -> None:
    """Train and write `spec.output`. `build(preprocessing, base_rate)` gives a module `(numbers, codes) -> logits`."""
    started = time.monotonic()
    hvd.init()
    torch.set_num_threads(spec.threads)
    torch.manual_seed(parameters.seed)
    rows = load_rows(spec.dataset, parameters.seed)
    preprocessing = learn_preprocessing(rows.train, spec.dataset.numeric, spec.dataset.categorical)
    model = build(preprocessing, rows.base_rate)
    if hvd.rank() == 0:
        emit("start", rows=rows.train.height, validation_rows=rows.validation.height, workers=hvd.size())
    epochs = _fit(model, rows, preprocessing, parameters, MetricLog(spec.tracking if hvd.rank() == 0 else None))
    if hvd.rank() == 0:
        report = _write(spec, model, preprocessing, rows, epochs, started)
        emit("done", sha256=report.sha256, seconds=round(report.seconds, 2), onnx_difference=report.onnx_difference)
    # Nobody leaves before the model is written: a failure there must fail the launch of all.
    hvd.allreduce(torch.zeros(1), name="written")
    hvd.shutdown()


class _Tensors:
    def __init__(self, frame: pl.DataFrame, preprocessing: Preprocessing) -> None:
        self.numbers = torch.from_numpy(preprocessing.numbers(numeric_matrix(frame, preprocessing.numeric)))
        self.codes = torch.from_numpy(preprocessing.codes(frame))
        self.labels = torch.from_numpy(frame["label"].cast(pl.Float32).to_numpy().copy())


def _fit(
    model: torch.nn.Module, rows: Rows, preprocessing: Preprocessing, parameters: LoopParameters, log: MetricLog
) -> list[Epoch]:
    rank, world = hvd.rank(), hvd.size()
    train = _Tensors(rows.train, preprocessing)
    # Each worker judges its own share of the validation rows; sums and counts are what is averaged.
    validation = _Tensors(rows.validation[rank::world], preprocessing)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay, foreach=False
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    # One group: all gradients are reduced as one block, so that sums are taken in the same order in every run.
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), groups=1)
    steps = len(shard(rows.train.height, parameters.seed, 0, rank, world, parameters.batch_size))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps * parameters.epochs)
    # Dropout differs between workers, but is the same in every run.
    torch.manual_seed(parameters.seed * 1000 + rank)
    epochs = []
    for number in range(parameters.epochs):
        begun = time.monotonic()
        model.train()
        total = torch.zeros((), dtype=torch.float64)
        batches = torch.from_numpy(
            shard(rows.train.height, parameters.seed, number, rank, world, parameters.batch_size)
        )
        for batch in batches:
            optimizer.zero_grad()
            logits = model(train.numbers[batch], train.codes[batch])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, train.labels[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        trained = float(hvd.allreduce(total / len(batches), name="train_loss"))
        seconds = time.monotonic() - begun
        epoch = Epoch(
            epoch=number + 1,
            train_loss=trained,
            validation_loss=_validation_loss(model, validation),
            samples_per_s=round(batches.numel() * world / seconds, 1),
            seconds=round(seconds, 3),
        )
        if not math.isfinite(trained):  # the same number on all workers: all of them stop here
            raise ThroughlineError(
                f"The training loss became {trained} in epoch {number + 1}: lower learning_rate "
                f"(now {parameters.learning_rate:g}) or look for absurd feature values."
            )
        epochs.append(epoch)
        if rank == 0:
            emit("epoch", **epoch.model_dump(exclude={"validation_loss"}), validation_loss=epoch.validation_loss)
            metrics = epoch.model_dump(exclude={"epoch"}, exclude_none=True)
            log.log(epoch.epoch, metrics)
    return epochs


def _validation_loss(model: torch.nn.Module, rows: _Tensors) -> float | None:
    model.eval()
    with torch.no_grad():
        logits = model(rows.numbers, rows.codes)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, rows.labels, reduction="sum")
    total, count = hvd.allreduce(torch.tensor([float(loss), len(rows.labels)]).double(), op=hvd.Sum, name="validation")
    return float(total / count) if count else None


def _write(
    spec: TrainingSpec,
    model: torch.nn.Module,
    preprocessing: Preprocessing,
    rows: Rows,
    epochs: list[Epoch],
    started: float,
) -> TrainingReport:
    """Export, check, and put the output folder in place with one rename."""
    output = Path(spec.output)
    draft = output.with_name(f".{output.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        file = draft / MODEL_FILE
        file.write_bytes(compose(preprocessing, _export(model, preprocessing, draft / "core.onnx")).SerializeToString())
        report = TrainingReport(
            sha256=sha256_of(file),
            rows_trained=rows.train.height,
            rows_validation=rows.validation.height,
            base_rate=rows.base_rate,
            trained_from=rows.trained_from,
            trained_until=rows.trained_until,
            world_size=hvd.size(),
            epochs=epochs,
            onnx_difference=_compare(model, preprocessing, file, rows),
            seconds=time.monotonic() - started,
        )
        (draft / REPORT_FILE).write_text(json.dumps(report.model_dump(mode="json"), indent=2))
        if output.exists():
            shutil.rmtree(output)
        draft.rename(output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


class _Probability(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.model(numbers, codes))


def _export(model: torch.nn.Module, preprocessing: Preprocessing, file: Path) -> onnx.ModelProto:
    import onnx

    example = (torch.zeros(2, preprocessing.width), torch.zeros(2, len(preprocessing.categorical), dtype=torch.int64))
    names = ["numbers", "codes"]
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, not gone: 0.4 s against 10 s of the new one for the same operators.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            _Probability(model).eval(),
            example,
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["score"],
            dynamic_axes={name: {0: "rows"} for name in (*names, "score")},
        )
    core = onnx.load(str(file))
    file.unlink()
    return core


def _compare(model: torch.nn.Module, preprocessing: Preprocessing, file: Path, rows: Rows) -> float:
    """Largest difference on real rows, evenly drawn, from raw features to score. Raises when it is too large."""
    sample = rows.train.gather_every(max(1, rows.train.height // _ROWS_COMPARED))
    # A row with nothing known at all, and words never seen: what serving will meet sooner or later.
    strange = sample.head(2).with_columns(
        *(pl.lit(None).cast(sample.schema[name]).alias(name) for name in preprocessing.numeric),
        *(pl.lit("\N{SNOWMAN}").alias(name) for name in preprocessing.categorical),
    )
    sample = pl.concat([sample, strange], how="vertical_relaxed")
    tensors = _Tensors(sample, preprocessing)
    with torch.no_grad():
        expected = _Probability(model).eval()(tensors.numbers, tensors.codes).double().numpy()
    difference = float(np.max(np.abs(ServedModel.load(file, sha256_of(file)).score(sample) - expected)))
    if not difference <= ONNX_TOLERANCE:
        raise ThroughlineError(
            f"The exported model differs from the trained one by {difference:.2g} (allowed: {ONNX_TOLERANCE:g}): "
            "nothing was written; look at the operators of the model."
        )
    return difference
