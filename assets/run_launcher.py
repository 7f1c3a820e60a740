"""Starts each run as a fork of a process that has the graph loaded, in 0.3 s in place of 5.

Owns: that process (`run_worker`), the workers' process ids as tags of their runs, cancelling, noticing a killed worker.
Does not own: which run is next (Dagster's queue). Of one machine: `deploy/local/dagster.yaml` names it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Self

import psutil
from dagster import DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, serialize_value

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT
from throughline.foundation.tags import CODE, WORKER
from throughline.services.code import fingerprint_graph


class ForkingRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """A run's worker is known by the tag `throughline/worker` of the run: process id and start time (Unix seconds).

    Any process of this machine can therefore cancel it, and a worker outlives the launcher.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._lock = threading.Lock()
        self._forking: subprocess.Popen[str] | None = None
        self._code = ""
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        if run.job_code_origin is None:
            raise ThroughlineError(f"Run {run.run_id} names no code: launch it from Dagster.")
        arguments = ExecuteRunArgs(run.job_code_origin, run.run_id, self._instance.get_ref())
        with self._lock:
            worker = self._fork(serialize_value(arguments))
        try:
            started = psutil.Process(worker).create_time()
        except psutil.NoSuchProcess:
            started = 0.0  # it ended already: no process has this start
        self._instance.add_run_tags(run.run_id, {WORKER: f"{worker} {started}", CODE: self._code})

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        worker = _worker(run)
        if worker is None:
            return False
        worker.send_signal(signal.SIGINT)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        # Its worker may run before the tag is written, which takes long on a busy machine.
        if WORKER not in run.tags or _worker(run) is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "The run's worker process ended before the run did.")

    def dispose(self) -> None:
        if self._forking is not None and self._forking.stdin is not None:
            self._forking.stdin.close()
            self._forking.wait()

    def _fork(self, arguments: str) -> int:
        """Process id of a new worker; the code on disk is the code that it has loaded."""
        code = fingerprint_graph()
        if self._forking is None or self._forking.poll() is not None or code != self._code:
            self.dispose()
            command = [sys.executable, "-m", "assets.run_worker"]
            self._forking = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT
            )
            self._code = code
        requests, answers = self._forking.stdin, self._forking.stdout
        assert requests is not None
        assert answers is not None
        requests.write(f"{arguments}\n")
        requests.flush()
        answer = answers.readline()
        if not answer:
            raise ThroughlineError(f"The graph does not load (exit code {self._forking.wait()}): see the daemon's log.")
        return int(answer)


def _worker(run: DagsterRun) -> psutil.Process | None:
    """The process that executes the run, while it does."""
    pid, _, started = run.tags.get(WORKER, "0 0").partition(" ")
    try:
        worker = psutil.Process(int(pid))
        running = worker.create_time() == float(started) and worker.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return worker if running else None
