"""What it means to launch workers, whatever carries them: what goes in, what comes out, how it fails.

Owns: the protocol, the wire format of events, how an end is told apart from a failure.
Does not own: processes (`local.py`), what the workers do.

A worker is `python -m MODULE PARAMETERS.json`. A line of its output that is a JSON object with a key `event` is an
event, anything else is log. `{"event": "error", "message": ...}` says in one line why the worker gives up.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from throughline.errors import ThroughlineError

Reason = Literal["killed", "out_of_memory", "error", "timeout", "cancelled"]
OnEvent = Callable[[dict[str, Any]], None]
# A worker that stops only because a peer is gone leaves with this code (sysexits' "temporary failure"): the peer's
# end is the news, not its own.
EXIT_LOST_PEER = 75

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

    def __post_init__(self) -> None:
        if secrets := sorted(name for name in self.env if _SECRET.search(name)):
            raise ThroughlineError(
                f"Launch of {self.module}: {', '.join(secrets)} would be visible in the process list: "
                "pass the path of a file that holds the secret."
            )
        if self.processes < 1:
            raise ThroughlineError(f"Launch of {self.module}: {self.processes} processes: ask for at least 1.")


@dataclass(frozen=True)
class LaunchResult:
    """A launch whose workers all ended well."""

    seconds: float
    log: Path
    events: list[dict[str, Any]]


class LaunchFailed(ThroughlineError):
    """A launch that did not end well; `reason` is for code, the message for people."""

    def __init__(self, message: str, reason: Reason, log: Path, worker: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.log = log
        self.worker = worker


class Launcher(Protocol):
    """Runs workers to their end. Afterwards, however `run` is left, none of their processes is alive."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        """Blocks; `on_event` and `cancelled` are called in the caller's thread. Raises `LaunchFailed`."""
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


def explain(
    exits: list[tuple[int, int]],
    errors: list[tuple[int, str]],
    last_lines: Mapping[int, str],
    memory_kills: int,
    spec: LaunchSpec,
) -> LaunchFailed:
    """The one error of a failed launch.

    `exits`: (worker, exit code) in the order they ended, 128 + n for signal n. `errors`: (worker, message) as the
    workers told; `last_lines`: what each wrote last. `memory_kills`: processes the kernel ended for want of memory
    meanwhile.
    """
    worker, code = next(((w, c) for w, c in exits if c != EXIT_LOST_PEER), exits[0] if exits else (0, 1))
    where = f"worker {worker} of {spec.processes}"
    if code > 128 and not any(teller == worker for teller, _ in errors):
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        if memory_kills and code == 128 + signal.SIGKILL:
            message = f"{spec.module}: {where} was killed for want of memory: lower the batch size or the processes"
            return LaunchFailed(f"{message} (log: {spec.log}).", "out_of_memory", spec.log, worker)
        message = f"{spec.module}: {where} was killed ({name}): start it again, with more memory if that repeats"
        return LaunchFailed(f"{message} (log: {spec.log}).", "killed", spec.log, worker)
    told = next((text for teller, text in errors if teller == worker), errors[0][1] if errors else None)
    text = told or f"{where} ended with exit code {code}" + (f": {last_lines[worker]}" if worker in last_lines else "")
    return LaunchFailed(f"{spec.module}: {text.rstrip('.')} (log: {spec.log}).", "error", spec.log, worker)
