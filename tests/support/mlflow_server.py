"""A real MLflow server for tests, in a home of its own or for one home after another.

Owns: starting, emptying and ending it. Does not own: the server (`services/mlflow_server.py`).
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.servers import get_ok, wait_until_ready
from throughline.foundation.security.home import FILE
from throughline.foundation.settings import Settings, load_settings
from throughline.services.declared import NO_TELEMETRY
from throughline.services.ports import take_ports


@contextmanager
def mlflow_server(home: Path, artifacts: Path | None = None) -> Iterator[Settings]:
    """`artifacts`: a folder that only the server accesses, over HTTP; unset: one in the home, used directly."""
    settings = load_settings(home=home, port_base=take_ports())
    settings.mlflow_home.mkdir(parents=True)
    place = ["--default-artifact-root", str(settings.mlflow_home / "artifacts")]
    if artifacts is not None:
        place = ["--artifacts-destination", str(artifacts)]
    command = [
        *(sys.executable, "-m", "throughline.services.mlflow_server"),
        *("--host", "127.0.0.1", "--port", str(settings.port("mlflow"))),
        *("--backend-store-uri", f"sqlite:///{settings.mlflow_home / 'mlflow.db'}", *place),
    ]
    environment = {"THROUGHLINE_HOME": str(home), **NO_TELEMETRY, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "mlflow.log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
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


class EmptiedMlflow:
    """A running server that is given to one home after another, each time as empty as it was when it started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database = settings.mlflow_home / "mlflow.db"
        self._empty = settings.home / "empty.db"
        _copy_database(self._database, self._empty)

    def home(self, folder: Path) -> Settings:
        """The settings of a home in `folder` with this server's stores, now empty. Ports are the server's."""
        _copy_database(self._empty, self._database)
        shutil.rmtree(self._settings.mlflow_home / "artifacts", ignore_errors=True)
        settings = load_settings(home=folder, port_base=self._settings.port_base)
        settings.mlflow_home.symlink_to(self._settings.mlflow_home)
        shutil.copy(self._settings.home / FILE, folder)  # of this server
        return settings


def _copy_database(source: Path, target: Path) -> None:
    """Page by page under SQLite's own locks: a server that has the target open reads the new content from then on."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as write:
        read.backup(write)
