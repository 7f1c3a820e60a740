"""Workers on this machine: under horovodrun, fixed in number or elastic, under torchrun, or as a single process.

Owns: the command line, the environment, reading the output, deadline and cancellation.
Does not own: ending a tree of processes (`guard.py`), the message of a failure (`protocol.py`).
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from throughline.launch.protocol import (
    EXIT_LOST_PEER,
    Launcher,
    LaunchFailed,
    LaunchResult,
    LaunchSpec,
    OnEvent,
    explain,
    parse_event,
)

# What a worker may inherit. Not the whole environment: horovodrun writes it into command lines, which every user can
# read. Of object storage a worker gets the address and the profile's name; the profile's file has the credentials.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|PYTHONPATH|PYTHONHASHSEED|LD_LIBRARY_PATH|VIRTUAL_ENV|CUDA_VISIBLE_DEVICES"
    r"|AWS_(PROFILE|REGION|ENDPOINT_URL|ALLOW_HTTP|CONFIG_FILE|SHARED_CREDENTIALS_FILE)"
)
# How horovodrun and torchrun mark a worker's line.
_PREFIX = re.compile(r"^\[(?:default)?(\d+)\](?:<stdout>|<stderr>)?:")
# A worker's place may be used again soon after it was lost; by default Horovod would never use it again.
_COOL_DOWN_S = ("3", "10")
_TICK_S = 0.2


class HorovodLauncher:
    """`horovodrun` with Gloo over the loopback interface; needs no ssh and no MPI."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        return _run([*_horovodrun(spec), *_worker(spec)], spec, on_event, cancelled)


class ElasticLauncher:
    """`horovodrun` in its elastic mode: a lost worker is replaced, and the others continue meanwhile."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        # Horovod gives up a place together with all others of its host: two hosts, so that one always remains.
        here, there = (spec.processes + 1) // 2, spec.processes // 2
        hosts = [f"localhost:{here}", *([f"127.0.0.1:{there}"] if there else [])]
        with tempfile.TemporaryDirectory(prefix="throughline-") as folder:
            discovery = Path(folder) / "hosts.sh"
            discovery.write_text("#!/bin/sh\n" + "".join(f"echo {host}\n" for host in hosts))
            discovery.chmod(0o700)
            options = [
                *("--min-np", str(spec.min_processes or 1), "--max-np", str(spec.processes)),
                *("--host-discovery-script", str(discovery), "--blacklist-cooldown-range", *_COOL_DOWN_S),
                *("--reset-limit", str(spec.changes)),
            ]
            return _run([*_horovodrun(spec, *options), *_worker(spec)], spec, on_event, cancelled, elastic=True)


class TorchrunLauncher:
    """`torchrun` on one machine, for trainings over torch.distributed."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        # Unbuffered: it would otherwise collect the workers' lines before it passes them on.
        torchrun = [sys.executable, "-u", "-m", "torch.distributed.run", "--no-python", "--nproc-per-node"]
        with tempfile.TemporaryDirectory(prefix="throughline-") as folder:
            # Each rendezvous at a free port of its own; every line of a worker comes with its number in front.
            where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
            options = [str(spec.processes), "--nnodes", "1", *where, "--tee", "3", "--log-dir", folder]
            return _run([*torchrun, *options, *_worker(spec)], spec, on_event, cancelled)


class SingleProcessLauncher:
    """One worker without an engine; refuses more."""

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> LaunchResult:
        if spec.processes != 1:
            raise LaunchFailed(
                f"{spec.module}: {spec.processes} workers under the single-process launcher: set processes to 1.",
                "bad_parameters",
                spec.log,
            )
        return _run(_worker(spec), spec, on_event, cancelled)


LAUNCHERS: Mapping[str, Launcher] = {
    "single": SingleProcessLauncher(),
    "horovod": HorovodLauncher(),
    "elastic": ElasticLauncher(),
    "torchrun": TorchrunLauncher(),
}


def _horovodrun(spec: LaunchSpec, *options: str) -> list[str]:
    program = str(Path(sys.executable).with_name("horovodrun"))
    # Half of Horovod's own pause between two rounds: a step of a small network waits for one.
    tuned = ["--cycle-time-ms", "0.5", "--disable-cache"]
    return [program, "-np", str(spec.processes), "--gloo", "--network-interfaces", "lo", *tuned, *options]


def _worker(spec: LaunchSpec) -> list[str]:
    # A guard around each worker: horovodrun waits for ever while a child of a dead worker holds its output.
    return _guarded([sys.executable, "-u", "-m", spec.module, str(spec.parameters)], parent=0, report=True)


def _guarded(command: list[str], parent: int, report: bool = False) -> list[str]:
    return [sys.executable, "-m", "throughline.launch.guard", str(parent), str(int(report)), *command]


def _environment(spec: LaunchSpec) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
    # One thread per worker unless `env` sets more: workers share the cores, and sums keep their order.
    return {**inherited, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **spec.env}


class _Output:
    """Sorts the workers' output: all of it to the log, events to the caller, exits and errors kept for the end."""

    def __init__(self, log: IO[str], on_event: OnEvent | None) -> None:
        self._log, self._on_event, self._rest = log, on_event, b""
        self.events: list[dict[str, Any]] = []
        self.errors: list[tuple[int, str, str]] = []
        self.exits: list[tuple[int, int]] = []
        self.last_lines: dict[int, str] = {}  # of each worker

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(line.decode(errors="replace").rstrip("\r"))

    def close(self) -> None:
        if self._rest:
            self._line(self._rest.decode(errors="replace"))
            self._rest = b""

    @property
    def hopeless(self) -> bool:
        """Whether a worker has ended for a reason that its replacement would end for, too."""
        return any(0 < code <= 128 and code != EXIT_LOST_PEER for _, code in self.exits)

    def _line(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()
        prefix = _PREFIX.match(line)
        worker, text = (int(prefix[1]), line[prefix.end() :]) if prefix else (0, line)
        event = parse_event(text.lstrip())
        if event is None:
            if text.strip() and not (self.exits and prefix is None):  # not the last lines of horovodrun or torchrun
                self.last_lines[worker] = text.strip()
        elif event["event"] == "exit":
            self.exits.append((int(event["worker"]), int(event["code"])))
        elif event["event"] == "error":
            self.errors.append((worker, str(event.get("message")), str(event.get("reason"))))
        else:
            self.events.append(event)
            if self._on_event:
                self._on_event(event)


def _run(
    command: list[str],
    spec: LaunchSpec,
    on_event: OnEvent | None,
    cancelled: Callable[[], bool] | None,
    elastic: bool = False,
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
        stream: IO[bytes] = process.stdout  # ty: ignore[invalid-assignment]  # PIPE above
        try:
            _follow(process, stream, output, spec, started, cancelled, elastic)
        finally:
            # Reached on success, failure, deadline, KeyboardInterrupt and whatever a callback raises.
            process.send_signal(signal.SIGTERM)
            process.wait()
            stream.close()
        output.close()
    if process.returncode != 0:
        exits = output.exits or [(0, process.returncode)]
        raise explain(exits, output.errors, output.last_lines, _memory_kills() - memory_kills, spec)
    return LaunchResult(time.monotonic() - started, spec.log, output.events)


def _follow(
    process: subprocess.Popen,
    stream: IO[bytes],
    output: _Output,
    spec: LaunchSpec,
    started: float,
    cancelled: Callable[[], bool] | None,
    elastic: bool,
) -> None:
    """Read until all have closed the output: the guard and all processes below it have then ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
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
            if elastic and output.hopeless:
                return  # Horovod would replace it for ever
            if not selector.select(_TICK_S):
                continue
            chunk = os.read(stream.fileno(), 65536)
            if not chunk:
                process.wait()
                return
            output.feed(chunk)


def _memory_kills() -> int:
    """How many processes of this control group the kernel has ended for lack of memory; 0 where it does not count."""
    try:
        counters = Path("/sys/fs/cgroup/memory.events").read_text().split()
    except OSError:
        return 0
    return int(dict(zip(counters[::2], counters[1::2], strict=False)).get("oom_kill", 0))
