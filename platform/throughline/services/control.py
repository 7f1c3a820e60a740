"""`up`, `down` and `status` of the local services.

Owns: the order of things: one supervisord per home, ports free, started, healthy; gone when stopped.
Does not own: what runs (`declared`), how it is shown (`cli/services`). Deadlines are wall-clock seconds.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import psutil

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked, write_atomic
from throughline.foundation.settings import SECRETS, Settings
from throughline.services import health
from throughline.services import processes as os_processes
from throughline.services.conf import log_path, render
from throughline.services.daemon import Process, Supervisor
from throughline.services.declared import SHARED, Service, declare, render_workspace, secret_env, select

_POLL_S = 0.25
_TAIL_LINES = 40  # a Java stack trace is long, and its first line is the one that matters

Holders = Callable[[], dict[int, os_processes.Holder]]
Report = Callable[[str, str, float], None]  # service, its state, seconds since the command began


@dataclass(frozen=True)
class ServiceStatus:
    """`state`: running (it answers), starting (within its deadline), unhealthy, stopped, dead (it ended by itself)."""

    name: str
    state: str
    address: str | None
    detail: str = ""


class ServiceFailed(ThroughlineError):
    """A service died or missed its deadline; `tail` is the end of its log."""

    def __init__(self, message: str, tail: list[str]) -> None:
        super().__init__(message)
        self.tail = tail


def up(settings: Settings, names: list[str] | None = None, report: Report = lambda *_: None) -> list[ServiceStatus]:
    """Start what does not run (all services, or `names`) and wait until each answers; a no-op when all do.

    A running service whose settings changed is restarted. Raises `ServiceFailed`, or `ThroughlineError` for a port that
    a process outside this home holds.
    """
    wanted = select(declare(settings), names)
    begun = time.monotonic()
    with _commands_lock(settings):
        supervisor = Supervisor(settings)
        _prepare(settings, supervisor)
        processes = supervisor.processes()
        idle = [service for service in wanted if processes[service.name].state not in ("RUNNING", "STARTING")]
        if idle:
            _free_ports(idle, supervisor)
        for service in idle:
            if service.scratch is not None:
                shutil.rmtree(service.scratch, ignore_errors=True)
                service.scratch.mkdir()
            set_up(service)
            supervisor.launch(service.name)
    # Waiting needs no lock: `down` in another terminal need not sit out a slow start.
    return _await(settings, supervisor, wanted, begun, report)


def set_up(service: Service) -> None:
    """Make what a service needs before its first start. Raises `ServiceFailed` with the output's end."""
    if service.made is None or service.made.exists():
        return
    done = subprocess.run(
        service.setup, env={**os.environ, **service.env}, cwd=service.directory, capture_output=True, text=True
    )
    if done.returncode != 0:
        message = f"{service.name} cannot be set up: `{' '.join(service.setup)}` failed."
        raise ServiceFailed(message, done.stderr.splitlines()[-_TAIL_LINES:])


def down(settings: Settings) -> None:
    """Stop every service and supervisord; a no-op when nothing runs. Raises when something of ours stays."""
    supervisor = Supervisor(settings)
    if not settings.home.exists():
        return
    with _commands_lock(settings):
        pid = supervisor.pid()
        if pid is not None:
            supervisor.shutdown()
            _wait_gone(pid, timeout_s=60)
        # A supervisord that was killed, or whose socket was deleted, leaves its services running.
        os_processes.end([*_orphaned_supervisor(settings, supervisor), *os_processes.of_home(supervisor.url)])
        supervisor.socket.unlink(missing_ok=True)
        left = os_processes.of_home(supervisor.url)
        ports = {port for service in declare(settings) for port in service.ports}
        held = [holder for holder in os_processes.port_holders(ports, supervisor.url).values() if holder.own]
    if left or held:
        pids = sorted({process.pid for process in left} | {holder.pid for holder in held if holder.pid})
        raise ThroughlineError(f"Still running after `down`: {pids}. End them by hand (kill -9) and try again.")


def status(settings: Settings) -> list[ServiceStatus]:
    """The state of each service; their health checks run in parallel."""
    supervisor = Supervisor(settings)
    processes, services = supervisor.processes(), declare(settings)
    if not processes and (left := os_processes.services_left(supervisor.url)):
        lost = "runs without its supervisor, which was killed: `throughline up` starts it again"
        return [
            ServiceStatus(
                one.name, *(("unhealthy", one.address, lost) if one.name in left else ("stopped", one.address))
            )
            for one in services
        ]
    with ThreadPoolExecutor(len(services)) as pool:
        return list(pool.map(partial(_judge, settings, processes, _port_holders(services, supervisor)), services))


def dead_service(settings: Settings) -> ServiceFailed | None:
    """The failure of a service that died, with the end of its log; None when none did."""
    dead = [one for one in status(settings) if one.state == "dead"]
    return _failure(settings, dead) if dead else None


def served_models(settings: Settings) -> list[dict]:
    """What the model server serves now, by its own account; empty when it does not answer."""
    found = _listed(settings, "revisions")
    return found if isinstance(found, list) else []


def refusals(settings: Settings) -> dict[str, dict[str, str]]:
    """Why the model server does not serve what was deployed, by use case; empty when it does not answer."""
    found = _listed(settings, "refusals")
    return found if isinstance(found, dict) else {}


def _listed(settings: Settings, what: str) -> object:
    try:
        return health.get_json(f"{settings.url('model_http')}/v1/throughline/{what}", settings)
    except (OSError, http.client.HTTPException, ValueError, ThroughlineError):
        return None


def log_tail(path: Path, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines of a log that have something on them; reads at most 64 KiB."""
    if not path.exists():
        return []
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 65536))
        text = log.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]


def _prepare(settings: Settings, supervisor: Supervisor) -> None:
    """Folders, Dagster's instance file, supervisord with the configuration of these settings."""
    for folder in (settings.logs, settings.catalog.parent, settings.mlflow_home, settings.dagster_home):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.dagster_home / "dagster.yaml", (SHARED / "dagster.yaml").read_text())
    write_atomic(settings.workspace, render_workspace(settings))
    write_atomic(supervisor.conf, render(declare(settings), settings.home, supervisor.socket))
    pid = supervisor.pid()
    if pid is not None and not _has_secrets(pid, settings):
        supervisor.shutdown()  # a secret was changed: it is inherited from supervisord
        _wait_gone(pid, timeout_s=60)
        pid = None
    if pid is None:
        # What a killed supervisord left running has no parent that could watch it.
        os_processes.end([*_orphaned_supervisor(settings, supervisor), *os_processes.of_home(supervisor.url)])
        supervisor.start()
    else:
        _apply(supervisor)


def _apply(supervisor: Supervisor) -> None:
    """Bring a running supervisord to the configuration on disk; services whose definition changed are stopped."""
    added, changed, removed = supervisor.reload()
    for name in [*changed, *removed]:
        if supervisor.processes()[name].pid:
            supervisor.stop(name)
        supervisor.replace(name, add=name in changed)
    for name in added:
        supervisor.replace(name, remove=False)


def _free_ports(services: list[Service], supervisor: Supervisor) -> None:
    """End what killed services of this home left running; refuse when another process holds a needed port."""
    running = {process.pid for process in supervisor.processes().values() if process.pid}
    found = os_processes.of_home(supervisor.url)
    os_processes.end([p for p in found if not running & {p.pid, *(parent.pid for parent in p.parents())}])
    by_port = {port: service.name for service in services for port in service.ports}
    for port, holder in sorted(os_processes.port_holders(set(by_port), supervisor.url).items()):
        raise ThroughlineError(
            f"Port {port}, which {by_port[port]} needs, is taken by {holder}: stop it, or set THROUGHLINE_PORT_BASE."
        )


def _await(
    settings: Settings, supervisor: Supervisor, services: list[Service], begun: float, report: Report
) -> list[ServiceStatus]:
    """Wait until every service answers. All get their time before the first failure is raised."""
    waiting, final = list(services), {}
    with ThreadPoolExecutor(max(1, len(services))) as pool:
        while waiting:
            processes = supervisor.processes()
            holders = _port_holders(waiting, supervisor)
            judged = list(pool.map(partial(_judge, settings, processes, holders), waiting))
            seconds = time.monotonic() - begun
            for service, now in zip(tuple(waiting), judged, strict=True):
                report(service.name, now.state, seconds)
                if now.state in ("running", "dead", "stopped") or seconds > service.deadline_s:
                    waiting.remove(service)
                    final[service.name] = now
            if waiting:
                time.sleep(_POLL_S)
    failed = [service for service in services if final[service.name].state != "running"]
    if failed:
        raise _failure(settings, [final[service.name] for service in failed])
    return [final[service.name] for service in services]


def _failure(settings: Settings, failed: list[ServiceStatus]) -> ServiceFailed:
    """About the first that failed, with the end of its log; the others are named."""
    first, others = failed[0], ", ".join(one.name for one in failed[1:])
    log = log_path(settings.home, first.name)
    if first.state in ("dead", "stopped"):
        how, then = f"died ({first.detail or 'it was stopped'})", "`throughline up` starts it again"
    else:
        how, then = f"does not get ready ({first.detail})", "`throughline down`, then `up`, starts it afresh"
    also = f"; {others} failed, too" if others else ""
    return ServiceFailed(f"{first.name} {how}{also}: see {log}; {then}.", log_tail(log))


def _port_holders(services: list[Service], supervisor: Supervisor) -> Holders:
    """Who listens on the services' ports, looked up once, when the first of them answers (0.03 s)."""
    ports = {port for service in services for port in service.ports}
    return cache(lambda: os_processes.port_holders(ports, supervisor.url))


def _judge(settings: Settings, processes: dict[str, Process], holders: Holders, service: Service) -> ServiceStatus:
    process = processes.get(service.name)
    answer = None
    now = time.time()
    if process is not None and process.state in ("RUNNING", "STARTING"):
        answer = health.problem(service.health, settings, process.started, now) or _foreign(service, holders())
    state, detail = state_of(process, answer, now, service.deadline_s)
    return ServiceStatus(service.name, state, service.address, detail)


def _foreign(service: Service, holders: dict[int, os_processes.Holder]) -> str | None:
    """Why an answer is not the service's own: a process outside this home listens on its port."""
    found = ((port, holders.get(port)) for port in service.ports)
    others = [f"port {port} is held by {holder}" for port, holder in found if holder and not holder.own]
    return ", ".join(others) or None


def state_of(process: Process | None, problem: str | None, now: float, deadline_s: float) -> tuple[str, str]:
    """State and detail, from supervisor's view of a process and its health check's problem at `now` (Unix seconds)."""
    if process is None or process.state in ("STOPPED", "STOPPING"):
        return "stopped", ""
    if process.state not in ("RUNNING", "STARTING"):
        return "dead", process.exit
    if problem is None:
        return "running", ""
    return ("starting" if now - process.started <= deadline_s else "unhealthy"), problem


def _commands_lock(settings: Settings) -> AbstractContextManager[None]:
    """Serialises `up` and `down` on one home."""
    return locked(settings.home / "services.lock")


def _has_secrets(pid: int, settings: Settings) -> bool:
    inherited = psutil.Process(pid).environ()
    names = {f"THROUGHLINE_{name.upper()}" for name in SECRETS}
    return {name: value for name, value in inherited.items() if name in names} == secret_env(settings)


def _orphaned_supervisor(settings: Settings, supervisor: Supervisor) -> list:
    """A supervisord of this home that runs but whose socket is gone, found by its pid file."""
    try:
        pid = int((settings.home / "supervisord.pid").read_text())
        process = psutil.Process(pid)
        return [process] if str(supervisor.conf) in process.cmdline() else []
    except (FileNotFoundError, ValueError, psutil.Error):
        return []


def _wait_gone(pid: int, timeout_s: float) -> None:
    """Until the process ended; one that only waits to be reaped has ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.1)
