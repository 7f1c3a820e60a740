"""What tests with real services share: a home with an MLflow server, and one that also serves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support import servers
from tests.support.mlflow_server import mlflow_server
from throughline.foundation.settings import PROJECT_ROOT, Settings

MODEL_SERVER = PROJECT_ROOT / "tests" / "support" / "serving_bench_server.py"


@pytest.fixture(scope="module")
def home_with_mlflow(tmp_path_factory) -> Iterator[Settings]:
    """A home of its own with an MLflow server in it."""
    with mlflow_server(tmp_path_factory.mktemp("home")) as settings:
        yield settings


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
