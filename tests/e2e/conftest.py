"""What tests with real services share: a home with an MLflow server, and one that also serves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support import servers
from tests.support.mlflow_server import EmptiedMlflow, mlflow_server
from throughline.foundation.settings import PROJECT_ROOT, Settings

MODEL_SERVER = PROJECT_ROOT / "tests" / "support" / "fake_store_server.py"


@pytest.fixture(scope="session")
def session_mlflow(tmp_path_factory) -> Iterator[EmptiedMlflow]:
    """One MLflow server for all files of this process: a start costs many seconds."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as settings:
        yield EmptiedMlflow(settings)


@pytest.fixture(scope="module")
def home_with_mlflow(tmp_path_factory, session_mlflow: EmptiedMlflow) -> Settings:
    """A home of its own, in which the session's MLflow server has no run and no model yet."""
    return session_mlflow.home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def home_that_serves(home_with_mlflow: Settings) -> Iterator[Settings]:
    """The same with the model server, whose feature store is a fake."""
    command = [sys.executable, str(MODEL_SERVER)]
    with started(home_with_mlflow, "model-server", command, "model_http", "/v2/health/live"):
        yield home_with_mlflow


@contextmanager
def started(
    settings: Settings, name: str, command: Sequence[str], service: str, path: str, **environment: str
) -> Iterator[subprocess.Popen]:
    """A process for the time of the block, from when it answers `path` on the port of `service`; logs into the home."""
    own = {
        "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)]),
        "THROUGHLINE_HOME": str(settings.home),
        "THROUGHLINE_PORT_BASE": str(settings.port_base),
    }
    log = settings.home / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **own, **environment})
    try:
        url = settings.url(service) + path
        servers.wait_until_ready(process, settings.port(service), lambda: servers.get_ok(url), log)
        yield process
    finally:
        servers.end(process)
