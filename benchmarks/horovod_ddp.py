"""Training by Horovod against training by torch.distributed's DDP: the same trainer, the same rows, the same steps.

Owns: the rounds. Does not own: training (`training.trainers.mlp`), starting workers (`launch/`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.made_rows import CATEGORICAL, NUMERIC, made_rows
from throughline.experiment.prepare import prepare
from throughline.experiment.spec import TrainingSpec
from throughline.foundation.references import TableReference
from throughline.foundation.settings import PROJECT_ROOT
from throughline.launch import LAUNCHERS, LaunchSpec
from throughline.records import DatasetRecord

ABOUT = """
`training.trainers.mlp` on made rows, started by horovodrun and by torchrun in turn, with two workers and with one;
Gloo on CPUs. Samples per second are the trainer's own, the median over the epochs after the first. The ratio is
Horovod's samples per second to those of DDP (`ddp`: two workers, `ddp_1`: one). `single` is the same loop in one
process without any engine, `data_share` the part of the time that goes into fetching rows. Quick: two workers only.
"""
MODULE = "training.trainers.mlp"
ENGINES = {"ddp": ("horovod", "torchrun", 2), "ddp_1": ("horovod", "torchrun", 1)}


def make_rows(folder: Path, count: int) -> Path:
    """The folder of `count` prepared rows, or few less."""
    frame = made_rows(count)
    frame.write_delta(str(folder / "table"))
    last = frame["prediction_time"][-1]
    dataset = DatasetRecord(
        usecase="made",
        table=TableReference("made/training/dataset", 0),
        path=str(folder / "table"),
        fingerprint="made",
        as_of=last + timedelta(days=1),
        rows=count,
        numeric=NUMERIC,
        categorical=CATEGORICAL,
        inputs=[],
        holdout_from=last + timedelta(hours=1),
    )
    return prepare(folder / "prepared", dataset, seed=1)


def train(launcher: str, workers: int, rows: Path, folder: Path, epochs: int, batch: int) -> dict[str, float]:
    """Samples per second over all workers and the share of time for rows, after a first epoch that only warms."""
    spec = TrainingSpec(
        data=str(rows),
        parameters={"epochs": epochs, "batch_size": batch, "seed": 1},
        output=str(folder / "output"),
        device="cpu",
    )
    (folder / "spec.json").write_text(spec.model_dump_json())
    launch = LaunchSpec(MODULE, folder / "spec.json", workers, 600, folder / "launch.log", PROJECT_ROOT)
    return figures_of(LAUNCHERS[launcher].run(launch))


def figures_of(events: list[dict[str, Any]]) -> dict[str, float]:
    epochs = [event for event in events if event["event"] == "epoch"][1:]
    return {name: statistics.median(event[name] for event in epochs) for name in ("samples_per_s", "data_share")}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    count = chosen.rows or (8_000 if chosen.quick else 60_000)
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    epochs, batch = (2 if chosen.quick else 3), chosen.batch
    taken: dict[tuple[str, int], list[dict[str, float]]] = {}
    engines = {"ddp": ENGINES["ddp"]} if chosen.quick else ENGINES
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        folder = Path(made)
        rows = make_rows(folder, count)
        for number in range(rounds):
            for ours, peer, workers in engines.values():
                # Who begins takes turns, so that neither always finds the machine as the other left it.
                for launcher in (ours, peer) if number % 2 == 0 else (peer, ours):
                    found = train(launcher, workers, rows, folder, epochs, batch)
                    taken.setdefault((launcher, workers), []).append(found)
                    report.progress(f"{number + 1}/{rounds} {launcher}, {workers}: {found['samples_per_s']:,.0f} /s")
            if not chosen.quick:
                taken.setdefault(("single", 1), []).append(train("single", 1, rows, folder, epochs, batch))
    setup = {
        "rows": count,
        "numeric": len(NUMERIC),
        "categorical": len(CATEGORICAL),
        "batch_per_worker": batch,
        "epochs": epochs,
    }
    return summary(taken, chosen.quick, setup)


def summary(taken: dict[tuple[str, int], list[dict[str, float]]], quick: bool, setup: dict[str, Any]) -> dict[str, Any]:
    """`taken`: (launcher, workers) -> what `train` gave, round by round."""

    def all_of(launcher: str, workers: int, figure: str = "samples_per_s") -> list[float]:
        return [each[figure] for each in taken[launcher, workers]]

    names = {("single", 1): "single"} if ("single", 1) in taken else {}
    engines = {peer: engine for peer, engine in ENGINES.items() if (engine[0], engine[2]) in taken}
    for peer, (ours, theirs, workers) in engines.items():
        names |= {(ours, workers): f"{report.OURS}, {workers}", (theirs, workers): peer}
    figures = {
        name: {
            "samples_per_s": report.spread(all_of(*of)),
            "data_share": report.spread(all_of(*of, "data_share")),
        }
        for of, name in names.items()
    }
    ratios = {
        peer: report.ratio(all_of(ours, workers), all_of(theirs, workers), higher_is_better=True)
        for peer, (ours, theirs, workers) in engines.items()
    }
    measured = report.result("horovod_ddp", quick, setup, figures, ratios, "samples per second")
    shares = [each["data_share"] for each in taken[ENGINES["ddp"][0], 2]]
    alone = {"single": figures["single"]["samples_per_s"]["median"]} if "single" in figures else {}
    return measured | {"spread": measured["ratio_spread"], "data_share": report.spread(shares)["median"]} | alone


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.horovod_ddp", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="default 60000, quick 8000")
    parser.add_argument("--rounds", type=int, help="repetitions of all, in turn; default 5, quick 1")
    parser.add_argument("--batch", type=int, default=256, help="rows per step and worker")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
