"""The README's commands, run in the order given on a fresh home."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from throughline import services
from throughline.foundation.settings import DEFAULT_PORTS, PROJECT_ROOT, Settings, load_settings

pytestmark = [pytest.mark.drill(minutes=13), pytest.mark.timeout(3600)]

NOT_RUN = {"make test"}  # it would run this suite within itself
FEWER = {"--search 30": "--search 2"}
# only latencies were missed: their levels are those of a quiet machine
BUSY_MACHINE = re.compile(
    r"^FAIL: \d of \d scenarios missed a level"
    r"(?:[:;,] (?:[a-z-]+: )?p\d\d_ms [\d.e+]+ > \d+(?: at \d+ rows)?)+; report",
    re.MULTILINE,
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def commands(readme: str) -> list[str]:
    """The commands of the fenced blocks without a language; one that spans lines is kept whole."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        command = ""
        for line in block.splitlines():
            command = f"{command}\n{line}" if command else line
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            if words:
                found.append(command if "\n" in command else re.sub(r"\s+#.*", "", command))
            command = ""
    return found


def on_ports_of(settings: Settings, command: str) -> str:
    for service, port in DEFAULT_PORTS.items():
        command = command.replace(f"127.0.0.1:{port}", f"127.0.0.1:{settings.port(service)}")
    return command


@pytest.fixture
def fresh_home(session_home: Path, free_port_base: int) -> Iterator[Settings]:
    settings = load_settings(home=session_home / "readme", port_base=free_port_base)
    yield settings
    services.down(settings)


def test_the_readmes_commands_run_in_order_on_a_fresh_home(fresh_home: Settings) -> None:
    needs("java")
    environment = {
        **os.environ,
        "THROUGHLINE_HOME": str(fresh_home.home),
        "THROUGHLINE_PORT_BASE": str(fresh_home.port_base),
    }
    prediction = ""
    listed = [command for command in commands((PROJECT_ROOT / "README.md").read_text()) if command not in NOT_RUN]
    assert listed[0] == "make run"
    assert listed[-1] == "make stop"
    for command in listed:
        for many, few in FEWER.items():
            command = command.replace(many, few)
        command = on_ports_of(fresh_home, command).replace("PREDICTION_ID", prediction)
        done = subprocess.run(
            ["bash", "-c", command], cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False
        )
        printed = done.stdout + done.stderr
        if command == "make loadtest" and BUSY_MACHINE.search(printed):
            continue
        assert done.returncode == 0, f"{command}\n{printed[-4000:]}"
        assert "Traceback" not in printed, command
        if " predict " in command:
            prediction = _UUID.findall(done.stdout)[-1]
