"""Workers on this machine: under horovodrun, or one alone.

Owns: the command line, the environment, reading the output, deadline and cancellation.
Does not own: ending a tree of processes (`guard.py`), the words of a failure (`protocol.py`).
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from throughline.launch.protocol import LaunchFailed, LaunchResult, LaunchSpec, OnEvent, explain, parse_event

# What a worker may inherit. Not the whole environment: horovodrun writes it into command lines, which anybody can read.
# Of object storage it learns where it is and which profile to use; the profile's file has the credentials.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|PYTHONPATH|PYTHONHASHSEED|LD_LIBRARY_PATH|VIRTUAL_ENV|CUDA_VISIBLE_DEVICES"
    r"|AWS_(PROFILE|REGION|ENDPOINT_URL|ALLOW_HTTP|CONFIG_FILE|SHARED_CREDENTIALS_FILE)"
)
_PREFIX = re.compile(r"^\[(\d+)\]<(stdout|stderr)>:")
_EXIT = re.compile(r"^Process (\d+) exit with status code (\d+)\.")
_TICK_S = 0.2


class HorovodLauncher:
    """`horovodrun` with Gloo over the loopback interface; needs no ssh and no MPI."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        horovodrun = str(Path(sys.executable).with_name("horovodrun"))
        options = ["-np", str(spec.processes), "--gloo", "--network-interfaces", "lo", "--disable-cache"]
        # A guard around each worker, too: horovodrun waits for ever while a child of a dead worker holds its output.
        return _run([horovodrun, *options, *_guarded(_worker(spec), 0)], spec, on_event, cancelled)


class SingleProcessLauncher:
    """One worker, no Horovod around it; refuses to be asked for more."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        if spec.processes != 1:
            raise LaunchFailed(
                f"{spec.module}: {spec.processes} workers asked of the single-process launcher: set processes to 1.",
                "error",
                spec.log,
            )
        return _run(_worker(spec), spec, on_event, cancelled)


def _worker(spec: LaunchSpec) -> list[str]:
    return [sys.executable, "-u", "-m", spec.module, str(spec.parameters)]


def _guarded(command: list[str], parent: int) -> list[str]:
    return [sys.executable, "-m", "throughline.launch.guard", str(parent), *command]


def _environment(spec: LaunchSpec) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
    # One thread per worker unless asked otherwise: workers share the cores, and sums keep their order.
    return {**inherited, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **spec.env}


class _Output:
    """Takes the workers' output apart: everything to the log, events to the caller, ends and errors remembered."""

    def __init__(self, log: IO[str], on_event: OnEvent | None) -> None:
        self._log, self._on_event, self._rest = log, on_event, b""
        self.events: list[dict[str, Any]] = []
        self.errors: list[tuple[int, str]] = []
        self.exits: list[tuple[int, int]] = []
        self._last_lines: dict[tuple[int, str], str] = {}

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(line.decode(errors="replace").rstrip("\r"))

    def close(self) -> None:
        if self._rest:
            self._line(self._rest.decode(errors="replace"))
            self._rest = b""

    def last_lines(self) -> dict[int, str]:
        """Per worker the last line it wrote, on standard error if there is one."""
        stdout_first = sorted(self._last_lines.items(), key=lambda item: item[0][1] == "stderr")
        return {worker: line for (worker, _), line in stdout_first}

    def _line(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()
        prefix = _PREFIX.match(line)
        worker, text = (int(prefix[1]), line[prefix.end() :]) if prefix else (0, line)
        event = parse_event(text)
        if event is None:
            if exit_line := _EXIT.match(line):
                self.exits.append((int(exit_line[1]), int(exit_line[2])))
            elif text.strip() and (prefix or not self.exits):  # not horovodrun's own epilogue
                self._last_lines[worker, prefix[2] if prefix else "stdout"] = text.strip()
        elif event["event"] == "error":
            self.errors.append((worker, str(event.get("message"))))
        else:
            self.events.append(event)
            if self._on_event:
                self._on_event(event)


def _run(
    command: list[str], spec: LaunchSpec, on_event: OnEvent | None, cancelled: Callable[[], bool] | None
) -> LaunchResult:
    started = time.monotonic()
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    memory_kills = _memory_kills()
    with spec.log.open("w") as log:
        output = _Output(log, on_event)
        process = subprocess.Popen(
            _guarded(command, os.getpid()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=spec.workdir,
            env=_environment(spec),
            start_new_session=True,  # Ctrl-C reaches us, and we end the workers in order
        )
        try:
            _follow(process, output, spec, started, cancelled)
        finally:
            # Reached on success, failure, deadline, KeyboardInterrupt and whatever a callback raises.
            process.send_signal(signal.SIGTERM)
            process.wait()
            process.stdout.close()
    if process.returncode != 0:
        exits = output.exits or [(0, process.returncode)]
        raise explain(exits, output.errors, output.last_lines(), _memory_kills() - memory_kills, spec)
    return LaunchResult(time.monotonic() - started, spec.log, output.events)


def _follow(
    process: subprocess.Popen,
    output: _Output,
    spec: LaunchSpec,
    started: float,
    cancelled: Callable[[], bool] | None,
) -> None:
    """Read until everybody has closed the output, which is when the guard and all below it have ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if time.monotonic() - started > spec.timeout_s:
                raise LaunchFailed(
                    f"{spec.module}: not done after {spec.timeout_s:g} s and ended: raise THROUGHLINE_STEP_TIMEOUT_S "
                    f"or lower the epochs (log: {spec.log}).",
                    "timeout",
                    spec.log,
                )
            if cancelled is not None and cancelled():
                raise LaunchFailed(f"{spec.module}: cancelled (log: {spec.log}).", "cancelled", spec.log)
            if not selector.select(_TICK_S):
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                output.close()
                process.wait()
                return
            output.feed(chunk)


def _memory_kills() -> int:
    """How many processes of this control group the kernel has ended for want of memory; 0 where it does not tell."""
    try:
        counters = Path("/sys/fs/cgroup/memory.events").read_text().split()
    except OSError:
        return 0
    return int(dict(zip(counters[::2], counters[1::2], strict=False)).get("oom_kill", 0))
