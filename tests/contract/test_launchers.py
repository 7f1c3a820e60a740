"""What every launcher promises, held against each of them with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT
from throughline.launch import LAUNCHERS, LaunchFailed, LaunchSpec, local

# A worker that needs neither torch nor Horovod: what is tested is launching. It leaves its own number and that of a
# child in a session of its own in the folder it is given.
WORKER = """
import json, os, pathlib, signal, subprocess, sys, time
given = json.loads(pathlib.Path(sys.argv[1]).read_text())
rank = int(os.environ.get("HOROVOD_RANK") or os.environ.get("RANK") or 0)
folder = pathlib.Path(given["folder"])
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
(folder / f"{rank}.tmp").write_text(f"{os.getpid()} {child.pid}")
(folder / f"{rank}.tmp").rename(folder / f"{rank}.pids")
while len(list(folder.glob("*.pids"))) < given["processes"]:
    time.sleep(0.01)
emit = lambda event, **more: print(json.dumps({"event": event, "rank": rank, **more}), flush=True)
print("a line of log", rank, flush=True)
act, last = given["act"], rank == given["processes"] - 1
if act == "end":
    for number in range(3):
        emit("tick", number=number)
    print("the environment:", sorted(os.environ), flush=True)
    child.kill()
elif act == "explain" and last:
    emit("error", message="the dataset is empty: take more days", reason="bad_data")
    sys.exit(1)
elif act == "crash" and last:
    raise ZeroDivisionError("no such luck")
elif act == "lose" and not last:
    time.sleep(0.3)
    sys.exit(75)
elif act == "lose":
    os.kill(os.getpid(), signal.SIGKILL)
elif act == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    emit("tick")
    time.sleep(300)
else:
    emit("tick")
    time.sleep(300)
"""


# torchrun imports torch before it starts a worker, 4 s of a core for each launch: some promises are drills for it.
LIGHT = [pytest.param(name, marks=pytest.mark.drill if name == "torchrun" else ()) for name in LAUNCHERS]


@pytest.fixture(params=LAUNCHERS)
def launch(request, tmp_path):
    """(launcher, a function `spec(act, **changes)` for it, a function `workers()` for the processes it started)."""
    launcher, processes = LAUNCHERS[request.param], 1 if request.param == "single" else 2
    (tmp_path / "the_worker.py").write_text(WORKER)
    (tmp_path / "pids").mkdir()

    def spec(act: str, **changes) -> LaunchSpec:
        given = {"act": act, "folder": str(tmp_path / "pids"), "processes": processes}
        (tmp_path / "given.json").write_text(json.dumps(given))
        paths = os.pathsep.join(path for path in (str(tmp_path), os.environ.get("PYTHONPATH")) if path)
        values = {
            "module": "the_worker",
            "parameters": tmp_path / "given.json",
            "processes": processes,
            "timeout_s": 60,
            "log": tmp_path / "logs" / "launch.log",
            "workdir": PROJECT_ROOT,
            "env": {"PYTHONPATH": paths},
            "min_processes": processes,
            "changes": 1,
        }
        return LaunchSpec(**{**values, **changes})

    def workers() -> list[int]:
        found = [int(pid) for file in (tmp_path / "pids").glob("*.pids") for pid in file.read_text().split()]
        assert len(found) == 2 * processes, "the workers have not even started"
        return found

    return launcher, spec, workers


def alive(pids: list[int], within_s: float = 0.0) -> list[int]:
    """Those of `pids` that still run after at most `within_s`."""
    end = time.monotonic() + within_s
    while True:
        left = [pid for pid in pids if _runs(pid)]
        if not left or time.monotonic() >= end:
            return left
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_events_arrive_in_order_all_is_in_the_log_and_secrets_of_the_caller_do_not_reach_the_workers(
    launch, monkeypatch
):
    monkeypatch.setenv("THROUGHLINE_TOKEN", "secret-value")
    launcher, spec, _ = launch
    seen, ending = [], spec("end")
    assert launcher.run(ending, on_event=seen.append) == seen
    for rank in {event["rank"] for event in seen}:
        assert [event["number"] for event in seen if event["rank"] == rank] == [0, 1, 2]
    text = ending.log.read_text()
    assert "a line of log 0" in text
    assert "'PATH'" in text
    assert "THROUGHLINE_TOKEN" not in text


def test_a_secret_in_the_environment_of_a_launch_is_refused(tmp_path):
    with pytest.raises(ThroughlineError, match="DB_PASSWORD would be visible"):
        LaunchSpec("m", tmp_path, 1, 60, tmp_path, tmp_path, env={"DB_PASSWORD": "secret-value"})


@pytest.mark.parametrize("launch", LIGHT, indirect=True)
def test_the_reason_that_a_worker_reports_is_the_error(launch):
    launcher, spec, workers = launch
    with pytest.raises(LaunchFailed, match="the dataset is empty: take more days") as failure:
        launcher.run(spec("explain"))
    assert failure.value.reason == "bad_data"
    assert "\n" not in str(failure.value)
    assert not alive(workers())


def test_a_worker_that_crashes_is_reported_with_its_last_line(launch):
    launcher, spec, workers = launch
    crashing = spec("crash")
    with pytest.raises(LaunchFailed, match="ZeroDivisionError: no such luck") as failure:
        launcher.run(crashing)
    assert failure.value.reason == "bad_code"
    assert "Traceback" in crashing.log.read_text()
    assert not alive(workers())


def test_a_killed_worker_is_one_clear_error_and_leaves_no_process(launch):
    launcher, spec, workers = launch
    losing = spec("lose")
    with pytest.raises(LaunchFailed, match=r"SIGKILL") as failure:
        launcher.run(losing)
    assert failure.value.reason == "lost_worker"
    assert failure.value.worker == losing.processes - 1  # not the one that only lost its peer
    assert not alive(workers())


@pytest.mark.parametrize("launch", LIGHT, indirect=True)
def test_a_launch_ends_at_its_deadline_even_when_workers_ignore_sigterm(launch, monkeypatch):
    launcher, spec, workers = launch
    late = [0]  # the launcher's clock jumps once the workers are up, however long that took
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))
    with pytest.raises(LaunchFailed, match="not done after 60 s") as failure:
        launcher.run(spec("ignore"), on_event=lambda event: late.__setitem__(0, 61))
    assert failure.value.reason == "timeout"
    assert not alive(workers())


@pytest.mark.parametrize("launch", LIGHT, indirect=True)
def test_a_cancelled_launch_leaves_no_process(launch):
    launcher, spec, workers = launch
    seen = []
    with pytest.raises(LaunchFailed) as failure:
        launcher.run(spec("wait"), on_event=seen.append, cancelled=lambda: bool(seen))
    assert failure.value.reason == "cancelled"
    assert not alive(workers())


@pytest.mark.parametrize("launch", LIGHT, indirect=True)
def test_an_interrupt_in_the_caller_leaves_no_process(launch):
    launcher, spec, workers = launch

    def interrupt(event: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.run(spec("wait"), on_event=interrupt)
    assert not alive(workers())


@pytest.mark.parametrize(
    ("launch", "number"),
    [
        pytest.param(
            name,
            number,
            marks=pytest.mark.drill if (name, number.name) == ("torchrun", "SIGTERM") else (),
            id=f"{name}-{number.name}",
        )
        for name in LAUNCHERS
        for number in (signal.SIGTERM, signal.SIGKILL)
    ],
    indirect=["launch"],
)
def test_a_caller_that_is_killed_leaves_no_process(launch, number):
    launcher, spec, workers = launch
    name = next(name for name, each in LAUNCHERS.items() if each is launcher)
    waiting = spec("wait")
    code = (
        "from pathlib import Path; from throughline.launch import *;"
        f"spec = LaunchSpec('the_worker', Path({str(waiting.parameters)!r}), {waiting.processes}, 60, "
        f"Path({str(waiting.log)!r}), Path({str(waiting.workdir)!r}), {dict(waiting.env)!r});"
        f"LAUNCHERS[{name!r}].run(spec, lambda event: print('event', flush=True))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while caller.stdout.readline() != "event\n":
            assert caller.poll() is None
        started = workers()
        caller.send_signal(number)
        caller.wait()
        assert not alive(started, within_s=10)
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()


def test_the_single_process_launcher_refuses_more_workers(tmp_path):
    spec = LaunchSpec("the_worker", Path("x"), 2, 60, tmp_path / "log", PROJECT_ROOT)
    with pytest.raises(LaunchFailed, match="2 workers"):
        LAUNCHERS["single"].run(spec)
