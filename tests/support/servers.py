"""Starts a server for a test, and checks that the answers are its own.

Owns: the wait for a process of ours to listen and to answer. Does not own: the ports (`services/ports.py`).
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

DEADLINE_S = 240  # against hangs: a busy machine takes its time


def wait_until_ready(process: subprocess.Popen, port: int, answers: Callable[[], bool], log: Path) -> None:
    """Until the process, or one that it started, listens on `port` and `answers()`; another's answer does not count.

    Fails the test, with the end of the log, when the process ends or takes too long.
    """
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end and process.poll() is None:
        if answers() and listens(process.pid, port):
            return
        time.sleep(0.05)
    pytest.fail(f"{log.stem} did not start on port {port}: {log.read_text()[-2000:] if log.exists() else 'no log'}")


def get_ok(url: str) -> bool:
    """Whether a GET is answered with a success."""
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2).is_success
    return False


def listens(pid: int, port: int) -> bool:
    """Whether the process or a descendant of it listens on the port."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        pids = {pid, *(child.pid for child in process.children(recursive=True))}
        found = psutil.net_connections("tcp")
        return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid in pids for c in found)
    return False


def end(process: subprocess.Popen, grace_s: float = 20) -> None:
    """Terminate, and kill what has not ended after `grace_s`."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
