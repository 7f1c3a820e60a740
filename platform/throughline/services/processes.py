"""Processes of this machine: which listen on a port, which belong to a home.

Owns: the rule that a process belongs to a home when the address of its supervisord is in the process's environment,
which every descendant inherits. Does not own: starting services (`daemon.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Holder:
    """A process that listens on a port; `pid` is None where the system hides it, `own` when it belongs to the home."""

    pid: int | None
    command: str
    own: bool

    def __str__(self) -> str:
        return "a process of another user" if self.pid is None else f"process {self.pid} ({self.command})"


def port_holders(ports: set[int], supervisor_url: str) -> dict[int, Holder]:
    """The process that listens on each of `ports`, on any address."""
    found: dict[int, Holder] = {}
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in ports:
            found.setdefault(connection.laddr.port, _holder(connection.pid, supervisor_url))
    return found


def of_home(supervisor_url: str) -> list[psutil.Process]:
    """Every living process of the home's services, but not this one or an ancestor of it."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process for process in psutil.process_iter() if process.pid not in spared and _belongs(process, supervisor_url)
    ]


def services_left(supervisor_url: str) -> set[str]:
    """Names of the services whose processes live, whether or not supervisord does."""
    names = set()
    for process in of_home(supervisor_url):
        try:
            names.add(process.environ().get("SUPERVISOR_PROCESS_NAME", ""))
        except (psutil.Error, OSError):
            continue
    return names


def end(processes: list[psutil.Process], grace_s: float = 5) -> None:
    """Terminate, then kill what is left after `grace_s`."""
    for process in processes:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        _signal(process.kill)
    psutil.wait_procs(alive, timeout=grace_s)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


def _belongs(process: psutil.Process, supervisor_url: str) -> bool:
    try:
        return (
            process.uids().real == os.getuid()
            and process.status() != psutil.STATUS_ZOMBIE
            and process.environ().get("SUPERVISOR_SERVER_URL") == supervisor_url
        )
    except (psutil.Error, OSError):
        return False


def _holder(pid: int | None, supervisor_url: str) -> Holder:
    if pid is None:
        return Holder(None, "", False)
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline())
    except psutil.Error:
        return Holder(None, "", False)
    return Holder(pid, command if len(command) <= 100 else f"{command[:97]}...", _belongs(process, supervisor_url))
