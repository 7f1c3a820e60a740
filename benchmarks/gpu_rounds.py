"""What `benchmarks.gpu_training` measures, in the environment that it made: `FOLDER END` and a few options.

Owns: the trainings, the plain PyTorch loop, and `result.json` in the folder, written anew after each of them, so that
a call that runs out of time leaves what it has. Does not own: training (`training.trainers.mlp`), the environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import report
from benchmarks.gpu_training import ROOT
from benchmarks.made_rows import CATEGORICAL, NUMERIC, made_rows
from throughline.experiment.prepared import PreparedRows, open_prepared, write_prepared
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, TrainingReport, TrainingSpec
from throughline.launch import LAUNCHERS, LaunchFailed, LaunchSpec
from throughline.models.served_model import ServedModel
from training.network import Network
from training.parameters import NetworkParameters

MODULE = "training.trainers.mlp"
BATCHES = (4_096, 65_536, 256, 16_384, 1_024)  # in this order, as the time may run out
PRECISIONS = ("float32", "bfloat16")
PEERS = ("cpu", "plain", "resident")
LONGEST_S, SHORTEST_S = 90.0, 15.0  # of one training
Name = tuple[str, str, int]  # who, precision, rows of a batch
Figures = dict[str, Any]


def parameters_for(batch: int) -> dict[str, Any]:
    """Without dropout, whose random numbers differ between devices: the models of both can then be compared."""
    return {"epochs": 3 if batch < 4_096 else 8, "batch_size": batch, "dropout": 0.0, "seed": 1}


# --- our trainer --------------------------------------------------------------------------------


class Watch(threading.Thread):
    """How busy the GPU is, and how much of its memory is taken, 20 times a second within `with`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float, float]] = []  # monotonic time, percent, bytes
        self._ended = threading.Event()

    def __enter__(self) -> Watch:
        if torch.cuda.is_available():
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            sample = (time.monotonic(), float(torch.cuda.utilization()), float(torch.cuda.device_memory_used()))
            self.samples.append(sample)


def load_between(samples: Sequence[tuple[float, float, float]], begun: float, ended: float) -> Figures:
    """Mean utilisation between two instants, and the memory taken since the first sample; empty without samples."""
    within = [sample for sample in samples if begun <= sample[0] <= ended]
    if not within:
        return {}
    return {
        "utilisation_percent": round(statistics.fmean(sample[1] for sample in within), 1),
        "memory_mib": round((max(sample[2] for sample in within) - samples[0][2]) / 2**20),
    }


def train(name: Name, device: str, launcher: str, rows: PreparedRows, seconds: float) -> tuple[Figures, np.ndarray]:
    """One training by our trainer: its figures, and the scores of the exported model on the sample's rows."""
    _, precision, batch = name
    folder = rows.folder.parent / "-".join(map(str, name))
    folder.mkdir()
    spec = TrainingSpec(
        data=str(rows.folder),
        parameters=parameters_for(batch),
        output=str(folder / "output"),
        device=device,
        precision=precision,
        threads=len(os.sched_getaffinity(0)) if device == "cpu" else 1,
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    times: list[float] = []  # when epochs ended
    with Watch() as watch:
        events = LAUNCHERS[launcher].run(
            LaunchSpec(MODULE, folder / "spec.json", 1, seconds, folder / "launch.log", ROOT),
            lambda event: times.append(time.monotonic()) if event["event"] == "epoch" else None,
        )
    # The first epoch only warms.
    epochs = [event for event in events if event["event"] == "epoch"][1:]
    written = TrainingReport.model_validate_json((folder / "output" / REPORT_FILE).read_text())
    figures = {
        "samples_per_s": [epoch["samples_per_s"] for epoch in epochs],
        "data_share": statistics.median(epoch["data_share"] for epoch in epochs),
        "validation_log_loss": written.validation_log_loss,
        "onnx_difference": written.onnx_difference,
        **load_between(watch.samples, times[0], times[-1]),
    }
    return figures, ServedModel.load(folder / "output" / MODEL_FILE, written.sha256).score(rows.sample())


# --- peers --------------------------------------------------------------------------------------


def plain(name: Name, device: str, rows: PreparedRows, seconds: float) -> Figures:
    """The loop of any PyTorch tutorial over the trainer's network, by rows in host memory or the device's (`resident`).

    Raises `TimeoutError` when it takes longer than `seconds`.
    """
    end = time.monotonic() + seconds
    who, precision, batch = name
    parameters = NetworkParameters.model_validate(parameters_for(batch))
    model = Network(parameters, rows.facts).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay)
    data = [torch.tensor(values) for values in (rows.train.numbers, rows.train.codes, rows.train.labels)]
    if who == "resident":
        data = [values.to(device) for values in data]
    batch = min(batch, len(rows.train))
    steps, speeds = len(rows.train) // batch, []
    for _ in range(parameters.epochs):
        _synchronize(device)
        begun = time.perf_counter()
        order = torch.randperm(len(rows.train), device=data[0].device)
        for step in range(steps):
            if time.monotonic() > end:
                raise TimeoutError(f"not done after {seconds:.0f} s")
            taken = order[step * batch : (step + 1) * batch]
            numbers, codes, labels = (values[taken].to(device) for values in data)
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                loss = binary_cross_entropy_with_logits(model(numbers, codes).float(), labels)
            loss.backward()
            optimizer.step()
        _synchronize(device)
        speeds.append(round(steps * batch / (time.perf_counter() - begun), 1))
    return {"samples_per_s": speeds[1:]}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def allreduce(mebibytes: int, rounds: int = 20) -> Figures:
    """Horovod's sum of a tensor on the GPU, by this process as the only rank; runs in a process of its own."""
    os.environ["NCCL_DEBUG"] = "VERSION"  # NCCL prints its version when it is used for the first time
    import horovod.torch as hvd  # postpones Horovod, which a call without it lacks

    hvd.init()
    values = torch.ones(mebibytes * 2**18, device="cuda")
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        values = hvd.allreduce(values, op=hvd.Sum, name="benchmark")
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - begun) * 1000)
    return {
        "nccl_built": bool(hvd.nccl_built()),
        "correct": bool((values == 1).all()),
        "allreduce_mib": mebibytes,
        "allreduce_ms": round(statistics.median(taken), 3),
    }


# --- the call -----------------------------------------------------------------------------------


def make(folder: Path, count: int) -> PreparedRows:
    """Made rows as our trainer reads them; the last twentieth is for validation."""
    frame = made_rows(count)
    folder.mkdir()
    held = count // 20
    write_prepared(folder, frame.head(-held), frame.tail(held), NUMERIC, CATEGORICAL, seed=1)
    return open_prepared(folder)


def summary(taken: dict[Name, Figures], quick: bool, setup: Figures, skipped: list[str]) -> Figures:
    """The result so far; a ratio for each of our trainings whose peer was measured, too."""
    figures, ratios = {}, {}
    for (who, precision, batch), found in taken.items():
        speeds = {"samples_per_s": report.spread(found["samples_per_s"])} if "samples_per_s" in found else {}
        figures[f"{who}, {precision}, {batch}"] = found | speeds
        for peer in PEERS if who == report.OURS else ():
            # The CPU has float32 only: whoever trains there would not use bfloat16.
            other = taken.get((peer, "float32" if peer == "cpu" else precision, batch))
            if other:
                ratios[f"{peer}, {precision}, {batch}"] = report.ratio(
                    found["samples_per_s"], other["samples_per_s"], higher_is_better=True
                )
    return report.result("gpu_training", quick, setup, figures, ratios, "samples per second") | {"skipped": skipped}


def trainings(quick: bool) -> list[Name]:
    """What is trained, batch by batch: first the CPU, whose model the others are compared with."""
    names = []
    for batch in BATCHES[:1] if quick else BATCHES:
        names.append(("cpu", "float32", batch))
        for precision in PRECISIONS[:1] if quick else PRECISIONS:
            names += [(who, precision, batch) for who in (report.OURS, "plain", "resident")]
    return names


def measure(chosen: argparse.Namespace) -> None:
    rows = make(chosen.folder / "rows", chosen.rows)
    setup = {
        "rows": chosen.rows, "numeric": len(NUMERIC), "categorical": len(CATEGORICAL), "device": chosen.device,
        "launcher": chosen.launcher, "cpu_threads": len(os.sched_getaffinity(0)),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "onnxruntime")},
    }  # fmt: skip
    taken: dict[Name, Figures] = {}
    skipped: list[str] = []
    scores: dict[int, np.ndarray] = {}  # of the CPU's model, per batch

    def save() -> None:
        draft = chosen.folder / "result.draft"
        draft.write_text(json.dumps(summary(taken, chosen.quick, setup, skipped)))
        draft.replace(chosen.folder / "result.json")

    if chosen.launcher == "horovod" and chosen.device == "cuda":
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                setup["nccl_one_rank"] = pool.submit(allreduce, 64).result(60)
            except (BrokenProcessPool, TimeoutError, RuntimeError, AssertionError) as error:
                skipped.append(f"allreduce over NCCL: {error!r}")
    for name in trainings(chosen.quick):
        who, _, batch = name
        text = ", ".join(map(str, name))
        left = chosen.end - time.monotonic()
        if left < SHORTEST_S:
            skipped.append(f"{text}: no time was left")
            continue
        longest = min(LONGEST_S, left)
        try:
            if who in ("plain", "resident"):
                taken[name] = plain(name, chosen.device, rows, longest)
            else:
                device, launcher = ("cpu", "single") if who == "cpu" else (chosen.device, chosen.launcher)
                taken[name], found = train(name, device, launcher, rows, longest)
                if who == "cpu":
                    scores[batch] = found
                elif batch in scores:
                    taken[name]["difference_from_cpu"] = float(np.max(np.abs(found - scores[batch])))
        except (LaunchFailed, TimeoutError) as error:
            skipped.append(f"{text}: {error}")
            if isinstance(error, LaunchFailed):
                report.progress("".join(error.log.read_text().splitlines(keepends=True)[-20:]))
            continue
        report.progress(f"{text}: {statistics.median(taken[name]['samples_per_s']):,.0f} /s")
        save()
    save()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_rounds")
    parser.add_argument("folder", type=Path)
    parser.add_argument("end", type=float, help="on the monotonic clock")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--launcher", choices=sorted(LAUNCHERS), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--quick", action="store_true")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
