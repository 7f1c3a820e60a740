"""Homes that are put under load, and the load test as a command.

Owns: a home with a model server over a fake feature store and a collector, the call of `python -m loadtests`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import MODEL_SERVER, started
from tests.support import fake_store_server
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.services.ports import take_ports

COLLECTOR = [sys.executable, "-m", "throughline.events.collector"]


@contextmanager
def home_under_load(folder: Path) -> Iterator[Settings]:
    """Both processes run for the time of the block."""
    settings = Settings(home=folder, port_base=take_ports())
    fake_store_server.put_revision(settings)
    with (
        started(settings, "collector", COLLECTOR, "collector", "/health"),
        started(settings, "model-server", [sys.executable, str(MODEL_SERVER)], "model_http", "/v2/health/ready"),
    ):
        yield settings


def environment(settings: Settings) -> dict[str, str]:
    own = {"THROUGHLINE_HOME": str(settings.home), "THROUGHLINE_PORT_BASE": str(settings.port_base)}
    return {**os.environ, **own}


def loadtests(settings: Settings, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command in this home."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtests", *arguments],
        cwd=PROJECT_ROOT, env=environment(settings), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def only_slow(missed: list[str]) -> bool:
    """Whether only latencies were missed: their levels are those of a quiet machine."""
    return all(text.startswith(("p50_ms", "p95_ms", "p99_ms")) for text in missed)
