"""A machine without a registry gets what it lacks and nothing more; a call ends in time with what it has."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable

import numpy as np
import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu_rounds, gpu_training
from throughline.experiment.prepared import open_prepared

OURS = gpu_rounds.report.OURS


def test_what_is_carried_is_pinned_by_the_lock():
    locked = gpu_training.pins((gpu_training.ROOT / "requirements.lock").read_text())
    assert set(gpu_training.CARRIED) - set(locked) == {"nvidia-ml-py"}
    assert gpu_training.pins("a-b==1.2.3 \\\n    --hash=sha256:0\nc==2 ; python_version<'4'\n    # via d==9\n") == {
        "a-b": "1.2.3",
        "c": "2",
    }


def test_a_missing_package_is_installed_when_a_wheel_of_it_is_carried():
    files = ["polars_runtime_32-2.1.0-cp310-abi3-linux.whl", "h11-0.16.0-py3-none-any.whl", "horovod-0.28.1.tar.gz"]
    assert gpu_training.carried(files, ["polars-runtime-32", "horovod", "torch"]) == ["polars-runtime-32"]


def test_an_environment_on_top_sees_our_packages_and_keeps_its_own(tmp_path):
    python = gpu_training.make_environment(tmp_path / "environment")
    assert gpu_training.lacking(python, ("numpy", "no-such-package")) == ["no-such-package"]
    where = "import sysconfig, numpy; print(sysconfig.get_path('purelib'), sysconfig.get_path('scripts'))"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.split()
    assert all(path.startswith(str(tmp_path)) for path in found)


def test_a_stage_ends_in_time_with_all_its_processes(tmp_path):
    """The shell ignores the request to end, and its child would outlive it."""
    child = tmp_path / "child"
    script = f"trap '' TERM; sleep 60 & echo $! > {child}; wait; wait; sleep 60"
    stages = gpu_training.Stages(1.0)
    begun = time.monotonic()
    assert not stages.run("slow", 60, ["bash", "-c", script])
    assert time.monotonic() - begun < 15
    assert stages.problems == ["slow: not done after 1 s"]
    pid = int(child.read_text())
    # Whoever adopted it may not have looked at its end yet.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_stage_that_fails_is_named_with_its_exit_code():
    stages = gpu_training.Stages(60)
    assert stages.run("good", 30, ["true"])
    assert not stages.run("bad", 30, ["false"])
    assert stages.problems == ["bad: exit code 1"]
    assert set(stages.taken) == {"good", "bad"}


def test_without_a_gpu_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr(gpu_training, "look", lambda: {"torch": "2.13.0", "cuda": None, "gpu": None})
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu_training", "--json"])
    assert gpu_training.main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "No NVIDIA GPU" in printed.err


def figures(*speeds: float, **more: float) -> dict:
    return {"samples_per_s": list(speeds), **more}


def test_ratios_are_against_the_cpu_in_float32_and_plain_loops_in_the_same_precision():
    taken = {
        ("cpu", "float32", 256): figures(10.0, 20.0),
        (OURS, "float32", 256): figures(100.0, 100.0, data_share=0.5),
        (OURS, "bfloat16", 256): figures(200.0, 200.0),
        ("plain", "bfloat16", 256): figures(400.0, 400.0),
        (OURS, "float32", 1024): figures(1.0, 1.0),
    }
    measured = json.loads(json.dumps(gpu_rounds.summary(taken, False, {}, ["x: no time was left"])))
    assert measured["ratio"] == {"cpu, float32, 256": 7.5, "cpu, bfloat16, 256": 15.0, "plain, bfloat16, 256": 0.5}
    assert measured["figures"][f"{OURS}, float32, 256"]["data_share"] == 0.5
    assert measured["skipped"] == ["x: no time was left"]


def test_the_load_of_a_gpu_is_that_between_two_epochs():
    samples = [(0.0, 0.0, 2**20), (1.0, 80.0, 5 * 2**20), (2.0, 100.0, 3 * 2**20), (9.0, 0.0, 9 * 2**20)]
    assert gpu_rounds.load_between(samples, 0.5, 2.5) == {"utilisation_percent": 90.0, "memory_mib": 4}
    assert gpu_rounds.load_between(samples, 3.0, 4.0) == {}
    assert gpu_rounds.load_between([], 0.0, 1.0) == {}


def test_every_training_is_compared_with_a_model_of_the_cpu():
    names = gpu_rounds.trainings(quick=False)
    for place, (who, _, batch) in enumerate(names):
        assert who == "cpu" or ("cpu", "float32", batch) in names[:place]
    assert {name[2] for name in names} == {256, 1_024, 4_096, 16_384, 65_536}
    assert len(names) == len(set(names)) == 5 * 7
    assert len(gpu_rounds.trainings(quick=True)) == 4


@pytest.mark.parametrize("who", ["plain", "resident"])
def test_the_plain_loop_trains_on_all_rows_but_the_last_odd_ones(tmp_path, who):
    rows = gpu_rounds.make(tmp_path / "rows", 600)
    assert (len(rows.train), len(rows.validation)) == (570, 30)
    found = gpu_rounds.plain((who, "bfloat16", 256), "cpu", rows, 60)
    assert len(found["samples_per_s"]) == 2
    assert min(found["samples_per_s"]) > 0
    with pytest.raises(TimeoutError):
        gpu_rounds.plain((who, "float32", 256), "cpu", rows, 0)


def test_made_rows_are_prepared_as_the_trainer_reads_them(tmp_path):
    gpu_rounds.make(tmp_path / "rows", 600)
    rows = open_prepared(tmp_path / "rows")
    assert rows.train.numbers.shape == (570, 20)
    assert rows.train.codes.shape == (570, 4)
    assert 0.1 < rows.facts.base_rate < 0.9
    assert rows.sample().height >= 285
    assert np.isfinite(rows.train.numbers).all()


def needed_by(names: Iterable[str]) -> set[str]:
    """These packages and what they need, as far as it is installed here."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        try:
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        todo += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def test_what_is_carried_needs_nothing_more_than_what_is_expected():
    rest = needed_by([*gpu_training.CARRIED, "horovod"]) - needed_by(gpu_training.EXPECTED) - {"horovod"}
    unused = {"cffi", "pycparser"}  # Horovod declares cffi and does not import it
    assert rest - unused <= set(gpu_training.CARRIED)


WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def test_all_is_measured_by_what_is_carried_and_expected_and_no_other_package(tmp_path):
    """In processes, the trainer's too, that find none of our other packages."""
    there = needed_by([*gpu_training.CARRIED, *gpu_training.EXPECTED])
    owners = importlib.metadata.packages_distributions()
    absent = {module for module, names in owners.items() if not there & set(map(canonicalize_name, names))}
    assert {"mlflow", "deltalake", "pandas", "pydantic_settings"} <= absent
    # PyTorch takes optree by its metadata, which are there.
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(names=absent - {"optree"}))
    folders = [tmp_path, gpu_training.ROOT / "platform", gpu_training.ROOT]
    command = ["-m", "benchmarks.gpu_rounds", str(tmp_path), str(time.monotonic() + 300)]
    options = ["--rows", "600", "--launcher", "single", "--device", "cpu", "--quick"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    subprocess.run([sys.executable, *command, *options], check=True, cwd=gpu_training.ROOT, env=env)
    measured = json.loads((tmp_path / "result.json").read_text())
    assert measured["skipped"] == []
    assert set(measured["ratio"]) == {f"{peer}, float32, 4096" for peer in gpu_rounds.PEERS}
    ours = measured["figures"][f"{OURS}, float32, 4096"]
    assert ours["samples_per_s"]["repetitions"] == 7
    assert ours["onnx_difference"] < 1e-5
    assert ours["difference_from_cpu"] == 0
