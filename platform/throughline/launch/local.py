"""Workers on this machine: under horovodrun, fixed in number or elastic, under torchrun, or as a single process.

Owns: command lines, the environment, reading the output, deadline and cancellation.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from throughline.launch.protocol import (
    COOL_DOWN_S,
    EXIT_LOST_PEER,
    Launcher,
    LaunchFailed,
    LaunchSpec,
    OnEvent,
    explain,
    parse_event,
    worker_environment,
)

# What a worker may inherit. Not the whole environment: horovodrun writes it into command lines, which every user can
# read. Of object storage a worker gets the address and the profile's name; the profile's file has the credentials.
_INHERITED = re.compile(
    r"PATH|HOME|USER|LANG|LC_.*|TZ|TMPDIR|PYTHONPATH|PYTHONHASHSEED|LD_LIBRARY_PATH|VIRTUAL_ENV|CUDA_VISIBLE_DEVICES"
    r"|AWS_(PROFILE|REGION|ENDPOINT_URL|ALLOW_HTTP|CONFIG_FILE|SHARED_CREDENTIALS_FILE)"
)
# How horovodrun and torchrun mark a worker's line.
_PREFIX = re.compile(r"^\[(?:default)?(\d+)\](?:<stdout>|<stderr>)?:")
_TICK_S = 0.2


def _single(spec: LaunchSpec, scratch: Path) -> list[str]:
    """One worker without an engine."""
    if spec.processes != 1:
        problem = f"{spec.processes} workers under the single-process launcher: set processes to 1"
        raise LaunchFailed(spec, problem, "bad_parameters")
    return []


def _horovodrun(spec: LaunchSpec, scratch: Path, *options: str) -> list[str]:
    """Horovod with Gloo over the loopback interface; needs no ssh and no MPI."""
    program = str(Path(sys.executable).with_name("horovodrun"))
    # Half of Horovod's own pause between two rounds: a step of a small network waits for one.
    tuned = ["--cycle-time-ms", "0.5", "--disable-cache"]
    return [program, "-np", str(spec.processes), "--gloo", "--network-interfaces", "lo", *tuned, *options]


def _elastic(spec: LaunchSpec, scratch: Path) -> list[str]:
    """Horovod's elastic mode: a lost worker is replaced, and the others continue meanwhile."""
    # Horovod gives up a place together with all others of its host: two hosts, so that one always remains.
    first, second = (spec.processes + 1) // 2, spec.processes // 2
    hosts = [f"localhost:{first}", *([f"127.0.0.1:{second}"] if second else [])]
    discovery = scratch / "hosts.sh"
    discovery.write_text("#!/bin/sh\n" + "".join(f"echo {host}\n" for host in hosts))
    discovery.chmod(0o700)
    options = [
        *("--min-np", str(spec.min_processes or 1), "--max-np", str(spec.processes)),
        *("--host-discovery-script", str(discovery), "--blacklist-cooldown-range", *COOL_DOWN_S),
        *("--reset-limit", str(spec.changes)),
    ]
    return _horovodrun(spec, scratch, *options)


def _torchrun(spec: LaunchSpec, scratch: Path) -> list[str]:
    """torch.distributed, each rendezvous at a free port of its own."""
    # Unbuffered: it would otherwise collect the workers' lines before it passes them on.
    torchrun = [sys.executable, "-u", "-m", "torch.distributed.run", "--no-python", "--nproc-per-node"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    # --tee 3: every line of a worker's two streams comes with its number in front.
    return [*torchrun, str(spec.processes), "--nnodes", "1", *rendezvous, "--tee", "3", "--log-dir", str(scratch)]


@dataclass(frozen=True)
class LocalLauncher:
    """Workers on this machine. `engine`: the command in front of a worker's own; it may use a folder of the launch."""

    engine: Callable[[LaunchSpec, Path], list[str]]
    elastic: bool = False

    def run(
        self, spec: LaunchSpec, on_event: OnEvent | None = None, cancelled: Callable[[], bool] | None = None
    ) -> list[dict[str, Any]]:
        started = time.monotonic()
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        memory_kills = _memory_kills()
        with tempfile.TemporaryDirectory(prefix="throughline-") as scratch, spec.log.open("w") as log:
            output = _Output(log, on_event)
            # A guard around each worker, too: horovodrun waits for ever while a child of a dead one holds its output.
            worker = [*_guard(0, report=True), sys.executable, "-u", "-m", spec.module, str(spec.parameters)]
            process = subprocess.Popen(
                [*_guard(os.getpid()), *self.engine(spec, Path(scratch)), *worker],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=spec.workdir,
                env=_environment(spec),
                start_new_session=True,  # Ctrl-C reaches us, and we end the workers in order
            )
            stream: IO[bytes] = process.stdout  # ty: ignore[invalid-assignment]  # PIPE above
            try:
                for chunk in _chunks(stream):
                    output.feed(chunk)
                    if time.monotonic() - started > spec.timeout_s:
                        remedy = "raise THROUGHLINE_STEP_TIMEOUT_S or lower the epochs"
                        raise LaunchFailed(spec, f"not done after {spec.timeout_s:g} s and ended: {remedy}", "timeout")
                    if cancelled is not None and cancelled():
                        raise LaunchFailed(spec, "cancelled", "cancelled")
                    if self.elastic and output.hopeless:
                        break  # Horovod would replace the worker for ever
                else:
                    process.wait()
            finally:
                # Reached on success, failure, deadline, KeyboardInterrupt and whatever a callback raises.
                process.send_signal(signal.SIGTERM)
                process.wait()
                stream.close()
            output.close()
        if process.returncode != 0:
            exits = output.exits or [(0, process.returncode)]
            raise explain(exits, output.errors, output.last_lines, _memory_kills() - memory_kills, spec)
        return output.events


LAUNCHERS: Mapping[str, Launcher] = {
    "single": LocalLauncher(_single),
    "horovod": LocalLauncher(_horovodrun),
    "elastic": LocalLauncher(_elastic, elastic=True),
    "torchrun": LocalLauncher(_torchrun),
}


def _guard(parent: int, report: bool = False) -> list[str]:
    return [sys.executable, "-m", "throughline.launch.guard", str(parent), str(int(report))]


def _environment(spec: LaunchSpec) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if _INHERITED.fullmatch(name)}
    return inherited | worker_environment(spec)


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


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    """What is read until all have closed the output: the guard and all processes below it have then ended.

    Empty for each `_TICK_S` without output.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if not selector.select(_TICK_S):
                yield b""
            elif chunk := os.read(stream.fileno(), 65536):
                yield chunk
            else:
                return


def _memory_kills() -> int:
    """How many processes of this control group the kernel has ended for lack of memory; 0 where it does not count."""
    try:
        counters = Path("/sys/fs/cgroup/memory.events").read_text().split()
    except OSError:
        return 0
    return int(dict(zip(counters[::2], counters[1::2], strict=False)).get("oom_kill", 0))
