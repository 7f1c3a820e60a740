"""Workers that are lost in the middle of a training: an elastic one continues, a fixed one is started again and loses
nothing; and two trainings with the same seed give the same bytes. Real launchers, real kills."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.training_home import write_dataset
from throughline.experiment.prepare import prepare
from throughline.experiment.spec import TrainingReport, TrainingSpec
from throughline.foundation.settings import PROJECT_ROOT
from throughline.launch import LAUNCHERS, LaunchFailed, LaunchSpec

pytestmark = pytest.mark.e2e

MLP = "training.trainers.mlp"
EPOCHS = 5
# Of the log loss, about 0.45 here. A change of the number of workers changes which rows are seen when: two seeds of an
# undisturbed training differ by about as much.
TOLERANCE = 0.01

# The trainer as it is, but before its last epoch all workers wait for a file: a fast machine must not end before the
# last kill. Waiting workers agree and commit, so that losses and new workers are noticed as in a step.
HELD = f"""
import sys, time
from pathlib import Path
import torch
from training import loop, worker
from training.trainers.mlp import Parameters, train
epoch, go = loop._Loop._epoch, Path(__file__).with_name("go")
def held(self, state, rows):
    while state.epoch == {EPOCHS - 1} and not float(self.world.sum(torch.tensor([float(go.exists())]), name="go")):
        time.sleep(0.05)
        self._commit(state)
    epoch(self, state, rows)
loop._Loop._epoch = held
if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return prepare(folder / "prepared", write_dataset(folder), seed=1)


class Training:
    """One training in a folder of its own, by two workers."""

    def __init__(self, rows: Path, folder: Path, module: str = MLP, **parameters) -> None:
        folder.mkdir()
        self.folder, self.module, self.events = folder, module, []
        spec = TrainingSpec(
            data=str(rows),
            parameters={"epochs": EPOCHS, "batch_size": 32, "seed": 1, **parameters},
            output=str(folder / "output"),
            checkpoint=str(folder / "checkpoint"),
            checkpoint_s=0,
        )
        (folder / "spec.json").write_text(spec.model_dump_json())

    def run(self, launcher: str, on_event: Callable[[dict], None] = lambda event: None, **changes) -> Training:
        def remember(event: dict) -> None:
            self.events.append(event)
            on_event(event)

        paths = os.pathsep.join(path for path in (str(self.folder), os.environ.get("PYTHONPATH")) if path)
        values = {"processes": 2, "timeout_s": 900, "env": {"PYTHONPATH": paths}}
        spec = LaunchSpec(
            module=self.module,
            parameters=self.folder / "spec.json",
            log=self.folder / "launch.log",
            workdir=PROJECT_ROOT,
            **{**values, **changes},
        )
        LAUNCHERS[launcher].run(spec, remember)
        return self

    def workers(self) -> list[psutil.Process]:
        """The oldest first."""
        found = [process for process in psutil.Process().children(recursive=True) if self._is_worker(process)]
        return sorted(found, key=lambda process: process.create_time())

    def _is_worker(self, process: psutil.Process) -> bool:
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            return False
        return self.module in command and "guard" not in command and "horovodrun" not in command

    @property
    def report(self) -> TrainingReport:
        return TrainingReport.model_validate_json((self.folder / "output" / "report.json").read_text())

    @property
    def model(self) -> bytes:
        return (self.folder / "output" / "model.onnx").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(rows, tmp_path_factory) -> Training:
    """By two workers of a fixed world."""
    return Training(rows, tmp_path_factory.mktemp("static") / "undisturbed").run("horovod")


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.drill)])
def test_an_elastic_training_survives_kills_and_learns_the_same(rows, undisturbed, tmp_path, kills):
    training = Training(rows, tmp_path / "elastic", module="held_mlp")
    (training.folder / "held_mlp.py").write_text(HELD)
    started: set[psutil.Process] = set()
    killed: list[int] = []
    whole = [False]

    def kill_one(event: dict) -> None:
        if event["event"] in ("start", "interruption"):
            whole[0] = event["workers"] == 2
            if whole[0] and len(killed) == kills:
                (training.folder / "go").touch()
        elif event["event"] in ("epoch", "progress", "checkpoint") and whole[0] and len(killed) < kills:
            workers = training.workers()
            assert len(workers) == 2
            started.update(workers)
            victim = workers[len(killed) % 2]  # the one that leads, and the other
            killed.append(victim.pid)
            whole[0] = False
            victim.kill()

    training.run("elastic", kill_one, min_processes=1)
    assert len(set(killed)) == kills
    assert not any(process.is_running() for process in started)
    assert not training.workers()

    report = training.report
    assert report.world_size == 2
    assert [epoch.epoch for epoch in report.epochs] == list(range(1, EPOCHS + 1))
    # Each loss is reported, and each return; report and events agree, whichever worker led.
    assert [interruption.workers for interruption in report.interruptions] == [1, 2] * kills
    events = [event for event in training.events if event["event"] == "interruption"]
    assert [{"event": "interruption", **each.model_dump()} for each in report.interruptions] == events
    assert all(each.seconds_lost > 0 for each in report.interruptions)
    assert sum(each.seconds_lost for each in report.interruptions) < report.seconds + 60
    assert report.resumed_at is None

    before = undisturbed.report
    assert abs(report.validation_log_loss - before.validation_log_loss) < TOLERANCE
    assert report.onnx_difference <= 1e-5


def test_a_fixed_world_started_again_after_a_kill_ends_with_the_same_model_bit_by_bit(rows, undisturbed, tmp_path):
    training = Training(rows, tmp_path / "killed")
    workers: list[psutil.Process] = []

    def kill_one(event: dict) -> None:
        if event["event"] == "checkpoint" and event["epoch"] >= 2 and event["step"] and not workers:
            workers.extend(training.workers())
            workers[-1].kill()

    with pytest.raises(LaunchFailed, match="SIGKILL") as failure:
        training.run("horovod", kill_one)
    assert failure.value.reason == "lost_worker"
    assert len(workers) == 2
    assert not any(process.is_running() for process in workers)
    assert not (training.folder / "output").exists()

    report = training.run("horovod").report
    assert report.resumed_at > 2
    assert report.epochs[-1].epoch == EPOCHS
    assert training.model == undisturbed.model
    assert undisturbed.report.resumed_at is None


def test_the_same_seed_and_world_give_the_same_model_bit_by_bit(rows, undisturbed, tmp_path):
    assert undisturbed.report.world_size == 2
    assert Training(rows, tmp_path / "again").run("horovod").model == undisturbed.model


def test_torchrun_trains_with_two_workers(rows, tmp_path):
    assert Training(rows, tmp_path / "first", epochs=1).run("torchrun").report.world_size == 2


@pytest.mark.drill
def test_the_same_seed_and_world_give_the_same_model_bit_by_bit_under_torchrun(rows, tmp_path):
    first, again = (Training(rows, tmp_path / name, epochs=2).run("torchrun") for name in ("first", "again"))
    assert first.report.world_size == 2
    assert first.model == again.model
