"""One scenario from start to figures.

Owns: the load with what happens beside it, the server's memory meanwhile, and whether every answer is in the inference
log. Does not own: bounds and verdicts (`levels.py`), the page (`report.py`). As `callers.py`, only for a process that
gevent patched first.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import polars as pl
import psutil

from loadtests import bad_clients
from loadtests.arrivals import Phase
from loadtests.callers import load
from loadtests.levels import Measured, Sample, figures, slope_per_minute
from loadtests.scenarios import WARM_UP_S, Scenario
from loadtests.target import Target
from throughline.events.client import drain, snapshot
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.lakehouse.table import read

MEMORY_EVERY_S = 5.0
SETTLED = 0.2  # of a run, after which its memory counts: pools and caches fill before
SWITCH_TIMEOUT_S = 60


@dataclass
class Run:
    """What was measured, and what a report draws: requests, (seconds, MB) of memory, seconds of switches."""

    measured: Measured
    samples: Sequence[Sample]
    memory: list[tuple[float, float]] = field(default_factory=list)
    switched: list[float] = field(default_factory=list)


def warm_up(target: Target) -> None:
    """Short load that does not count."""
    load(target, [Phase(WARM_UP_S, 20)], (1, 10, 100), clients=8)


def run(
    target: Target,
    scenario: Scenario,
    switch: Callable[[], None] | None = None,
    progress: Callable[[Sequence[Sample]], None] | None = None,
) -> Run:
    """Run the scenario to its end. `switch`: what its switches do; unless given, the revision is loaded again."""
    began, start = datetime.now(UTC), time.perf_counter()
    outcomes = bad_clients.Outcomes()
    memory: list[tuple[float, float]] = []
    switched: list[float] = []
    problems: list[str] = []
    beside: list[Callable[[], None]] = []
    if scenario.beside == "bad clients":
        beside.append(lambda: bad_clients.endlessly(target, outcomes))
    if scenario.beside == "switches":
        pause = scenario.seconds / (scenario.switches + 1)
        chosen = switch or (lambda: load_again(target))
        beside.append(lambda: _switch(chosen, scenario.switches, pause, start, switched, problems))
    if scenario.levels.memory_mb_per_min is not None:
        beside.append(lambda: _watch_memory(target, start, memory))
    samples = load(target, scenario.phases, scenario.rows, scenario.clients, beside, progress)
    facts: dict[str, object] = {}
    if scenario.beside == "bad clients":
        problems += outcomes.problems()
        facts["bad clients"] = {kind: dict(counts) for kind, counts in outcomes.counts.items()}
    if scenario.beside == "switches":
        facts["switches"] = len(switched)
        if len(switched) < scenario.switches:
            problems.append(f"switches {len(switched)} < {scenario.switches}")
    ids = [one for sample in samples for one in sample.ids]
    try:
        logged = logged_share(target, ids, began)
    except ThroughlineError as error:
        logged = 0.0
        problems.append(str(error))
    settled = [point for point in memory if point[0] >= SETTLED * scenario.seconds]
    measured = Measured(
        requests=len(samples),
        seconds=max(scenario.seconds, max((one.due + one.latency_ms / 1000 for one in samples), default=0.0)),
        failed_share=sum(sample.failure is not None for sample in samples) / len(samples) if samples else 1.0,
        logged_share=logged,
        figures=figures(samples),
        failures=dict(Counter(sample.failure for sample in samples if sample.failure is not None)),
        problems=problems,
        memory_mb_per_min=slope_per_minute(settled) if memory else None,
        facts=facts,
    )
    return Run(measured, samples, memory, switched)


def logged_share(target: Target, ids: Sequence[str], began: datetime) -> float:
    """Share of the predictions that are in the inference log exactly once. Raises when the log cannot be read."""
    drain(target.settings, target.url)
    table = snapshot(target.settings, target.usecase).table
    if table is None or not ids:
        return 0.0
    since = began - timedelta(minutes=1)  # clocks of two processes
    logged = read(target.settings, table).filter(pl.col("wall_time") >= since).select("id").collect()["id"]
    once = {one for one, count in Counter(logged.to_list()).items() if count == 1}
    return sum(one in once for one in ids) / len(ids)


def load_again(target: Target) -> None:
    """Have the server load the revision that is deployed, and put it in the place of the one that serves."""
    address = f"{target.url}/v2/repository/models/{target.usecase.name}/load"
    try:
        with client_of(target.settings, "model_http", SWITCH_TIMEOUT_S) as server:
            server.post(address).raise_for_status()
    except httpx.HTTPError as error:
        raise ThroughlineError(f"The server did not load its revision again ({error}): see its log.") from error


def command_of(words: str) -> Callable[[], None]:
    """A switch that runs a command in a shell. It raises with the last line of a command that fails."""

    def switch() -> None:
        done = subprocess.run(words, shell=True, capture_output=True, text=True, timeout=SWITCH_TIMEOUT_S, check=False)
        if done.returncode:
            last = ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
            raise ThroughlineError(f"The switch failed with exit code {done.returncode}: {last[:200]}")

    return switch


def _switch(
    switch: Callable[[], None], times: int, pause: float, start: float, switched: list[float], problems: list[str]
) -> None:
    """One every `pause` seconds, or at once when the one before took longer; until one fails, which is a problem."""
    for number in range(1, times + 1):
        time.sleep(max(0.0, start + number * pause - time.perf_counter()))
        try:
            switch()
        except ThroughlineError as error:
            problems.append(str(error))
            return
        switched.append(time.perf_counter() - start)


def _watch_memory(target: Target, start: float, memory: list[tuple[float, float]]) -> None:
    while True:
        memory.append((time.perf_counter() - start, resident_mb(target.port)))
        time.sleep(MEMORY_EVERY_S)


def resident_mb(port: int) -> float:
    """Resident memory of the processes that listen on a port of this machine, with their children, in MB."""
    listening = {one.pid for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.pid
                 and one.laddr and one.laddr[1] == port}  # fmt: skip
    processes: dict[int, Any] = {}
    for pid in listening:
        process = psutil.Process(pid)
        processes |= {each.pid: each for each in [process, *process.children(recursive=True)]}
    return sum(process.memory_info().rss for process in processes.values()) / 2**20
