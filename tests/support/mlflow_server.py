"""A real MLflow server for tests, in a home of its own.

Owns: starting and ending it. Does not own: how the platform starts its own (`services/declared.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import free_ports


@contextmanager
def mlflow_server(home: Path, artifacts: Path | None = None) -> Iterator[Settings]:
    """`artifacts`: a folder that only the server knows, given and taken over HTTP; unset: one in the home, directly."""
    settings = load_settings(home=home, port_base=free_ports(first=30000))
    settings.mlflow_home.mkdir(parents=True)
    place = ["--default-artifact-root", str(settings.mlflow_home / "artifacts"), "--no-serve-artifacts"]
    if artifacts is not None:
        place = ["--artifacts-destination", str(artifacts), "--serve-artifacts"]
    command = [
        *(str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(settings.port("mlflow"))),
        *("--backend-store-uri", f"sqlite:///{settings.mlflow_home / 'mlflow.db'}", *place),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "mlflow.log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(f"{settings.url('mlflow')}/health", server, home / "mlflow.log")
        yield settings
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    """Until the url is answered; fails the test, with the end of the log, when the server ends or takes too long."""
    end = time.monotonic() + 240
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    pytest.fail(f"{log.stem} did not start: {log.read_text()[-2000:]}")
