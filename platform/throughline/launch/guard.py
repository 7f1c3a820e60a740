"""`python -m throughline.launch.guard PARENT REPORT COMMAND...`: runs a command and leaves no process of it behind.

PARENT: the process that must be alive, 0 for any. REPORT: 1 for an event line with the command's exit code as soon as
it has ended; standard error then joins standard output.
Owns: ending a whole tree of processes, also those in a session of their own or without a parent (as horovodrun's
workers are), also when the caller was killed. Does not own: what the command is, or what its end means. Standard
library and psutil only, so that it starts in 0.1 s. Linux only (prctl).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_S = 2.0


def main(command: list[str], parent: int, report: bool) -> int:
    """Exit code of the command; 128 + n when signal n ended it or us."""
    libc = ctypes.CDLL(None, use_errno=True)
    # A process below that loses its parent becomes our child, so that the whole tree can be found from here.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    child = None
    try:
        if parent and os.getppid() != parent:  # it died before prctl could watch it
            return 128 + signal.SIGTERM
        # A worker's two streams as one: torchrun mixes two in any order, and the last line must stay the last.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT if report else None)
        code = child.wait()
        code = code if code >= 0 else 128 - code
        if report:
            _report(code)
        return code
    except _Stopped as stop:
        return 128 + stop.number
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _end_descendants(child)


class _Stopped(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def _stop(number: int, _frame: object) -> None:
    raise _Stopped(number)


def _report(code: int) -> None:
    """Which worker ended and how, at once: horovodrun and torchrun report only after all have ended."""
    worker = int(os.environ.get("HOROVOD_RANK") or os.environ.get("RANK") or 0)
    try:
        os.write(1, (json.dumps({"event": "exit", "worker": worker, "code": code}) + "\n").encode())
    except OSError:  # the launcher is gone
        return


def _end_descendants(child: subprocess.Popen | None) -> None:
    """SIGTERM to all, then SIGKILL until none is left, because new ones may start meanwhile."""
    me = psutil.Process()
    for process in (first := me.children(recursive=True)):
        _signal(process, signal.SIGTERM)
        _signal(process, signal.SIGCONT)  # a stopped process would not see the SIGTERM
    psutil.wait_procs(first, timeout=GRACE_S)
    while left := me.children(recursive=True):
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1.0)
    if child is not None:
        child.poll()


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[3:], int(sys.argv[1]), sys.argv[2] == "1"))
