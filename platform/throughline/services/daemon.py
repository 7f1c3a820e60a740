"""Supervisord itself: where its socket is, starting it, calling it.

Owns: one supervisord per home and the calls to it. Does not own: which services there are.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import subprocess
import sys
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.services.declared import secret_env


@dataclass(frozen=True)
class Process:
    """What supervisor knows of one service. `state` in its words: RUNNING, STOPPED, EXITED, STOPPING, FATAL, ..."""

    name: str
    state: str
    pid: int
    started: float
    exit: str


class Supervisor:
    """The supervisord of one home. Methods raise `ThroughlineError` when it does not answer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.socket = socket_path(settings.home)
        self.conf = settings.home / "supervisord.conf"
        self.url = f"unix://{self.socket}"
        self._proxy: xmlrpc.client.ServerProxy | None = None

    def pid(self) -> int | None:
        """Its process id, or None when it does not run."""
        try:
            return int(self._call("getPID"))
        except (OSError, http.client.HTTPException):
            return None

    def start(self) -> None:
        """Start it as a daemon of its own session; returns when its socket answers.

        No descriptor of ours is passed on: a pipe that reads `throughline up` ends with it.
        """
        runtime_folder().mkdir(mode=0o700, exist_ok=True)
        check_private(runtime_folder())
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        console = self._settings.logs / "supervisord.start.log"
        with console.open("wb") as file:
            result = subprocess.run(
                [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.conf)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self._settings.home,
                env=inherited_env(dict(os.environ), self._settings),
                start_new_session=True,
                timeout=60,
                check=False,
            )
        if result.returncode != 0 or self.pid() is None:
            output = console.read_text(errors="replace").strip().splitlines()
            cause = output[-1] if output else f"exit code {result.returncode}"
            raise ThroughlineError(f"supervisord did not start ({cause}): see {console}.")

    def processes(self) -> dict[str, Process]:
        """By service name; empty when supervisord does not run."""
        try:
            rows = self._call("getAllProcessInfo")
        except (OSError, http.client.HTTPException):
            return {}
        return {row["name"]: self._process(row) for row in rows}

    def launch(self, name: str) -> None:
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Stop one service and wait until it and its process group are gone."""
        self._call("stopProcess", name, True)

    def reload(self) -> tuple[list[str], list[str], list[str]]:
        """Read the configuration again, changing nothing: names (added, changed, removed)."""
        ((added, changed, removed),) = self._call("reloadConfig")
        return added, changed, removed

    def replace(self, name: str, remove: bool = True, add: bool = True) -> None:
        """Forget a stopped service's old definition and take the new one."""
        if remove:
            self._call("removeProcessGroup", name)
        if add:
            self._call("addProcessGroup", name)

    def shutdown(self) -> None:
        """Stop every service and supervisord itself; returns at once."""
        self._call("shutdown")

    def _call(self, method: str, *arguments: object) -> Any:
        if self._proxy is None:
            self._proxy = xmlrpc.client.ServerProxy(
                "http://localhost", transport=SupervisorTransport(serverurl=self.url)
            )
        try:
            return getattr(self._proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            subject = f" {arguments[0]}" if arguments else ""
            raise ThroughlineError(f"supervisord refused {method}{subject} ({fault.faultString}).") from fault
        except (OSError, http.client.HTTPException):
            self._proxy = None  # the connection is kept between calls: after an error, begin anew
            raise

    def _process(self, row: dict) -> Process:
        died = row["statename"] in ("EXITED", "FATAL", "BACKOFF", "UNKNOWN")
        return Process(
            name=row["name"],
            state=row["statename"],
            pid=row["pid"],
            started=float(row["start"]),
            exit=(row["spawnerr"] if row["statename"] == "FATAL" else self._exit(row)) if died else "",
        )

    def _exit(self, row: dict) -> str:
        """Supervisor keeps no signal number (it reports -1), but its log names it."""
        if row["exitstatus"] >= 0:
            return f"exit status {row['exitstatus']}"
        log = self._settings.logs / "supervisord.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        ends = re.findall(rf"exited: {re.escape(row['name'])} \((terminated by [^;)]+)", text)
        return ends[-1] if ends else "killed by a signal"


def inherited_env(caller: dict[str, str], settings: Settings) -> dict[str, str]:
    """The caller's environment (PATH, JAVA_HOME, proxies, certificates) with our secrets, without our other settings.

    Those stand in the configuration, so that one which is no longer set does not live on in supervisord.
    """
    kept = {name: value for name, value in caller.items() if not name.startswith("THROUGHLINE_")}
    return {**kept, **secret_env(settings)}


def runtime_folder() -> Path:
    """Short and the same in every shell: a socket's path has about 100 bytes, and TMPDIR differs between sessions."""
    return Path(f"/tmp/throughline-{os.getuid()}")


def socket_path(home: Path) -> Path:
    return runtime_folder() / f"{hashlib.sha256(str(home).encode()).hexdigest()[:16]}.sock"


def check_private(folder: Path) -> None:
    """Whoever can write here can command the services: refuse a folder that is not ours alone."""
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise ThroughlineError(f"{folder} is not a folder of this user alone (mode 0700): remove it and try again.")
