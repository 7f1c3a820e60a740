"""What tests with real services share: a home with an MLflow server, and one that also serves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.mlflow_server import mlflow_server, wait_for
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
    ready = f"{home_with_mlflow.url('model_http')}/v2/health/live"
    with started(home_with_mlflow, "model-server", [sys.executable, str(MODEL_SERVER)], ready):
        yield home_with_mlflow


@contextmanager
def started(
    settings: Settings, name: str, command: Sequence[str], url: str, **environment: str
) -> Iterator[subprocess.Popen]:
    """A process of the home for the time of the block, once `url` is answered. What it said is in the home."""
    told = {
        "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)]),
        "THROUGHLINE_HOME": str(settings.home),
        "THROUGHLINE_PORT_BASE": str(settings.port_base),
    }
    log = settings.home / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **told, **environment})
    try:
        wait_for(url, process, log)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
