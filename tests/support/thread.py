"""A home of the built-in use case, used through the command line, for the tests of the whole thread.

Owns: the home with its environment, its commands and its endpoint. Does not own: what the tests expect.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil

from throughline import services
from throughline.foundation.settings import Settings, load_settings
from throughline.graph.client import Graph, RunOutcome
from throughline.usecase import get_usecase

USECASE = get_usecase("flight_delay")


@dataclass(frozen=True)
class ThreadHome:
    """A home and the environment of its commands."""

    settings: Settings
    environment: dict[str, str]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("throughline")), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=1700, check=False)

    def predict_v1(self, instance: Any) -> httpx.Response:
        url = f"{self.settings.url('model_http')}/v1/models/{USECASE.name}:predict"
        return httpx.post(url, json={"instances": [instance]}, timeout=30)

    def kill_service(self, name: str) -> None:
        """SIGKILL the process that listens on a service's port, as an out-of-memory kill does."""
        port = self.settings.port(name)
        (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        os.kill(pid, signal.SIGKILL)
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(10)

    def service_state(self, name: str) -> str:
        return next(one.state for one in services.status(self.settings) if one.name == name)

    def run_log(self, run_id: str) -> str:
        """The messages of a run so far."""
        messages: list[str] = []
        Graph(self.settings)._report(run_id, None, RunOutcome(run_id, ""), lambda event: messages.append(event.message))
        return "\n".join(messages)


def thread_home(folder: Path, port_base: int, data_from: date | None) -> ThreadHome:
    """`data_from`: the first day of data in the home; None: as the use case declares."""
    settings = load_settings(home=folder, port_base=port_base, data_from=data_from)
    environment = {
        **os.environ,
        "THROUGHLINE_HOME": str(settings.home),
        "THROUGHLINE_PORT_BASE": str(settings.port_base),
    }
    if data_from is not None:
        environment["THROUGHLINE_DATA_FROM"] = data_from.isoformat()
    return ThreadHome(settings, environment)
