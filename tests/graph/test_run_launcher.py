"""Runs are forks of a process that has the graph loaded: they execute, can be cancelled; a killed one is noticed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.code_pointer import CodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import LaunchRunContext, WorkerStatus

from assets import run_launcher
from assets.run_launcher import ForkingRunLauncher
from throughline.foundation.settings import PROJECT_ROOT
from throughline.foundation.tags import CODE, RANGE_END, RANGE_START, WORKER

RAW = ("flight_schedules", "flight_departures", "flight_arrivals", "weather")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("launcher")


@pytest.fixture(scope="module")
def instance(home: Path) -> Iterator[DagsterInstance]:
    """A Dagster instance on disk with this machine's configuration; its forking process is kept for all tests."""
    configuration = yaml.safe_load((PROJECT_ROOT / "deploy" / "local" / "dagster.yaml").read_text())
    folder = home / "dagster"
    folder.mkdir()
    (folder / "dagster.yaml").write_text(yaml.safe_dump({"run_launcher": configuration["run_launcher"]}))
    with pytest.MonkeyPatch.context() as patch, DagsterInstance.from_config(str(folder)) as opened:
        patch.setenv("THROUGHLINE_HOME", str(home / "home"))
        yield opened


@pytest.fixture(scope="module")
def repository() -> ReconstructableRepository:
    return ReconstructableRepository(CodePointer.from_module("assets.definitions", "throughline", str(PROJECT_ROOT)))


def launch(instance: DagsterInstance, repository: ReconstructableRepository, first: str, last: str) -> str:
    """The run id of an ingestion of raw days, which has been given to the launcher."""
    job = repository.get_reconstructable_job("flight_delay_ingest")
    run = instance.create_run_for_job(
        job.get_definition(),
        asset_selection=frozenset(AssetKey(["flight_delay", "raw", name]) for name in RAW),
        job_code_origin=job.get_python_origin(),
        status=DagsterRunStatus.STARTING,
        tags={RANGE_START: first, RANGE_END: last},
    )
    launcher(instance).launch_run(LaunchRunContext(run, None))
    return run.run_id


def launcher(instance: DagsterInstance) -> ForkingRunLauncher:
    assert isinstance(instance.run_launcher, ForkingRunLauncher)
    return instance.run_launcher


def find(instance: DagsterInstance, run_id: str) -> DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def await_status(instance: DagsterInstance, run_id: str, *wanted: DagsterRunStatus) -> DagsterRun:
    end = time.monotonic() + 120
    while (run := find(instance, run_id)).status not in wanted:
        assert time.monotonic() < end, f"the run is {run.status} after two minutes"
        time.sleep(0.02)
    return run


def test_a_run_is_executed_with_the_settings_of_the_home_and_names_its_worker_and_code(
    instance: DagsterInstance, repository: ReconstructableRepository, home: Path
) -> None:
    run_id = launch(instance, repository, "2013-01-01", "2013-01-02")
    run = await_status(instance, run_id, DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE)
    assert run.status == DagsterRunStatus.SUCCESS
    assert (home / "home" / "lakehouse" / "flight_delay" / "raw" / "weather").is_dir()
    assert len(run.tags[CODE]) == 64


def test_a_cancelled_run_ends_as_cancelled_and_its_worker_with_it(
    instance: DagsterInstance, repository: ReconstructableRepository
) -> None:
    run_id = launch(instance, repository, "2013-01-01", "2013-12-31")
    run = await_status(instance, run_id, DagsterRunStatus.STARTED)
    worker = psutil.Process(int(run.tags[WORKER].split()[0]))
    assert launcher(instance).check_run_worker_health(run).status == WorkerStatus.RUNNING
    assert launcher(instance).terminate(run_id)
    await_status(instance, run_id, DagsterRunStatus.CANCELED)
    worker.wait(60)
    assert not launcher(instance).terminate(run_id), "a run that ended is not cancelled again"


def test_a_killed_worker_is_noticed(instance: DagsterInstance, repository: ReconstructableRepository) -> None:
    run_id = launch(instance, repository, "2013-01-01", "2013-12-31")
    run = await_status(instance, run_id, DagsterRunStatus.STARTED)
    worker = psutil.Process(int(run.tags[WORKER].split()[0]))
    worker.kill()
    worker.wait(60)
    found = launcher(instance).check_run_worker_health(run)
    assert (found.status, found.msg) == (WorkerStatus.FAILED, "The run's worker process ended before the run did.")
    assert not launcher(instance).terminate(run_id)


def test_another_process_with_the_workers_number_is_not_the_worker(instance: DagsterInstance) -> None:
    own = psutil.Process()
    for started, status in ((own.create_time(), WorkerStatus.RUNNING), (1.5, WorkerStatus.FAILED)):
        run = DagsterRun("job", tags={WORKER: f"{own.pid} {started}"})
        assert launcher(instance).check_run_worker_health(run).status == status


def test_a_run_whose_worker_is_not_tagged_yet_is_not_taken_for_a_killed_one(instance: DagsterInstance) -> None:
    assert launcher(instance).check_run_worker_health(DagsterRun("job")).status == WorkerStatus.RUNNING


def test_changed_code_is_loaded_before_the_next_run_and_runs_under_way_keep_theirs(
    instance: DagsterInstance, repository: ReconstructableRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = launch(instance, repository, "2013-01-01", "2013-01-10")
    monkeypatch.setattr(run_launcher, "fingerprint_graph", lambda: "of other code")
    after = launch(instance, repository, "2013-01-01", "2013-01-01")
    assert find(instance, before).tags[CODE] != find(instance, after).tags[CODE] == "of other code"
    for run_id in (before, after):
        run = await_status(instance, run_id, DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE)
        assert run.status == DagsterRunStatus.SUCCESS


def test_a_graph_that_does_not_load_is_reported_when_a_run_is_launched(
    instance: DagsterInstance, repository: ReconstructableRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "not a port")
    monkeypatch.setattr(run_launcher, "fingerprint_graph", lambda: "of code that does not load")
    with pytest.raises(Exception, match=r"does not load \(exit code 1\)"):
        launch(instance, repository, "2013-01-01", "2013-01-01")


def test_loading_the_graph_starts_no_thread_that_a_fork_would_lose() -> None:
    code = """
import threading
from dagster._core.code_pointer import CodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
ReconstructableRepository(CodePointer.from_module("assets.definitions", "throughline", None)).get_definition()
print([thread.name for thread in threading.enumerate()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert done.stdout.splitlines()[-1] == "['MainThread']"
