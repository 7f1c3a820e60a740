"""A real MLflow server for tests, in a home of its own.

Owns: starting and ending it. Does not own: how the platform starts its own (`services/declared.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import get_ok, wait_until_ready
from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports


@contextmanager
def mlflow_server(home: Path, artifacts: Path | None = None) -> Iterator[Settings]:
    """`artifacts`: a folder that only the server knows, given and taken over HTTP; unset: one in the home, directly."""
    settings = load_settings(home=home, port_base=take_ports())
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
        health = f"{settings.url('mlflow')}/health"
        wait_until_ready(server, settings.port("mlflow"), lambda: get_ok(health), home / "mlflow.log")
        yield settings
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
