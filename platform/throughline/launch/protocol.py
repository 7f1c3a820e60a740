"""Launching workers, on whatever machine: the spec, the result, the failure.

Owns: the protocol, the wire format of events, which failure the exits of workers mean.
Does not own: processes (`local.py`), what the workers do.

A worker is `python -m MODULE PARAMETERS.json`. A line of its output that is a JSON object with a key `event` is an
event, any other line is log. `{"event": "error", "message": ..., "reason": ...}` gives in one line the reason why the
worker fails; `{"event": "exit", "worker": ..., "code": ...}` is written by the guard around it, however it ended.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from throughline.foundation.errors import ThroughlineError

Reason = Literal["lost_worker", "out_of_memory", "bad_data", "bad_parameters", "bad_code", "timeout", "cancelled"]
_REASONS: Mapping[str, Reason] = {reason: reason for reason in get_args(Reason)}
# Only what a new attempt can cure is tried again: not lack of memory, which the next attempt has, too.
RETRIED: frozenset[Reason] = frozenset({"lost_worker"})
OnEvent = Callable[[dict[str, Any]], None]
# The exit code (sysexits' "temporary failure") of a worker that stops only because a peer is gone: the peer's exit is
# the cause.
EXIT_LOST_PEER = 75
# Horovod may use the place of a lost worker again after this many seconds (from, to); by default it never would.
COOL_DOWN_S = ("3", "10")

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE", re.IGNORECASE)


@dataclass(frozen=True)
class LaunchSpec:
    """One launch. `env` is added to the few inherited variables and is visible to every user of the machine."""

    module: str
    parameters: Path
    processes: int
    timeout_s: float
    log: Path
    workdir: Path
    env: Mapping[str, str] = field(default_factory=dict)
    # Of an elastic launch: the fewest workers it continues with, and how often workers may be lost or return.
    min_processes: int | None = None
    changes: int = 20

    def __post_init__(self) -> None:
        launch = f"Launch of {self.module}"
        if secrets := sorted(name for name in self.env if _SECRET.search(name)):
            remedy = "pass the path of a file that holds the secret"
            raise ThroughlineError(f"{launch}: {', '.join(secrets)} would be visible in the process list: {remedy}.")
        if self.processes < 1:
            raise ThroughlineError(f"{launch}: {self.processes} processes: give at least 1.")
        if self.min_processes is not None and not 1 <= self.min_processes <= self.processes:
            bounds = f"at least {self.min_processes} of {self.processes} processes"
            raise ThroughlineError(f"{launch}: {bounds}: give 1 up to all of them.")


class LaunchFailed(ThroughlineError):
    """A launch that failed; `reason` is for code, the message for people. `worker`: the rank at fault, where known."""

    def __init__(self, spec: LaunchSpec, problem: str, reason: Reason, worker: int | None = None) -> None:
        super().__init__(f"{spec.module}: {problem.rstrip('.')} (log: {spec.log}).")
        self.reason = reason
        self.worker = worker


def worker_environment(spec: LaunchSpec) -> dict[str, str]:
    """`env` of a launch. One thread per worker unless it sets more: workers share the cores, sums keep their order."""
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **spec.env}


class WorkerFailed(ThroughlineError):
    """Raised in a worker: the reason and message of its failure."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Launcher(Protocol):
    """Runs workers to their end. However `run` is left, none of their processes is alive afterwards."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> list[dict[str, Any]]:
        """Blocks; returns all events. `on_event` and `cancelled` are called in its thread. Raises `LaunchFailed`."""
        ...


def parse_event(text: str) -> dict[str, Any] | None:
    """The event in one line of a worker's output, or None when the line is log."""
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def emit(event: str, **values: Any) -> None:
    """Write an event of a worker to standard output, in one write: lines of two workers must not be mixed."""
    sys.stdout.write(json.dumps({"event": event, **values}, default=str) + "\n")
    sys.stdout.flush()


def explain(
    exits: list[tuple[int, int]],
    errors: list[tuple[int, str, str]],
    last_lines: Mapping[int, str],
    memory_kills: int,
    spec: LaunchSpec,
) -> LaunchFailed:
    """The one error of a failed launch.

    `exits`: (worker, exit code) in the order they ended, 128 + n for signal n. `errors`: (worker, message, reason) of
    the workers' error events. `last_lines`: each worker's last line. `memory_kills`: processes that the kernel ended
    for lack of memory meanwhile.
    """
    worker, code = next(((w, c) for w, c in exits if c not in (0, EXIT_LOST_PEER)), (0, EXIT_LOST_PEER if exits else 1))
    where = f"worker {worker} of {spec.processes}"
    error = next((error for error in errors if error[0] == worker), None)
    if code <= 128 and error is None and errors:
        error = errors[0]
    if error:
        worker, text, reason = error
        return LaunchFailed(spec, text, _REASONS.get(reason, "bad_code"), worker)
    if memory_kills and code == 128 + signal.SIGKILL:
        problem = f"{where} was killed for lack of memory: lower the batch size or the processes"
        return LaunchFailed(spec, problem, "out_of_memory", worker)
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        problem = f"{where} was killed ({name}): start it again, with more memory if that repeats"
        return LaunchFailed(spec, problem, "lost_worker", worker)
    if code == EXIT_LOST_PEER:
        return LaunchFailed(spec, "the workers lost each other: start it again", "lost_worker", worker)
    last = f": {last_lines[worker]}" if worker in last_lines else ""
    return LaunchFailed(spec, f"{where} ended with exit code {code}{last}", "bad_code", worker)
