"""Serving: our model server's full path against KServe's own trivial model in the same server framework.

Owns: the processes, rounds and ratios. Does not own: the home (`serving_home`), the client (`http_client`), the peer
(`kserve_trivial`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks import report
from benchmarks.http_client import Measured, drive, requests
from throughline.events.client import drain
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, PROJECT_ROOT, Settings
from throughline.services.ports import take_ports
from throughline.usecase import load_usecases

ABOUT = """
`throughline` is the model server as it is deployed: each request is parsed, its features are read from the online
store (SQLite), scored by an ONNX network and logged as an event, which a collector process receives meanwhile.
`kserve_trivial` is KServe's server with a model that returns a constant: no features, no model, no event. It is the
ceiling of what any model in this framework can reach, not a competitor: the ratio is how much of it is left. Both
get the same requests over REST V1 on loopback, from one client process on the same cores.
"""
PEER = "kserve_trivial"
CLIENTS = 8
START_S = 90


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.serving_home import make_home

    seconds, rounds = chosen.seconds or (1 if chosen.quick else 5), chosen.rounds or (2 if chosen.quick else 5)
    usecase = next(iter(load_usecases().values()))
    base = take_ports(len(DEFAULT_PORTS) + 1)
    ports = {report.OURS: 0, PEER: base + len(DEFAULT_PORTS)}
    with tempfile.TemporaryDirectory(prefix="bench-") as made, contextlib.ExitStack() as stack:
        settings = Settings(home=Path(made), port_base=base)
        ports[report.OURS] = settings.port("model_http")
        settings.logs.mkdir()
        commands = {
            "collector": ["throughline.events.collector"],
            "model-server": ["serving"],
            PEER: ["benchmarks.kserve_trivial", str(ports[PEER])],
        }
        running = {name: stack.enter_context(_process(settings, name, commands[name])) for name in ("collector", PEER)}
        report.progress("making a home with features and a model")
        instances = make_home(settings, usecase)
        running["model-server"] = stack.enter_context(_process(settings, "model-server", commands["model-server"]))
        addresses = {
            "collector": f"{settings.url('collector')}/health",
            "model-server": f"{settings.url('model_http')}/v2/models/{usecase.name}/ready",
            PEER: f"http://127.0.0.1:{ports[PEER]}/v2/models/trivial/ready",
        }
        for name, address in addresses.items():
            _wait(settings, name, running[name], address)
        bodies = [{"instances": [instance]} for instance in instances]
        made_requests = {
            report.OURS: requests(f"/v1/models/{usecase.name}:predict", bodies),
            PEER: requests("/v1/models/trivial:predict", bodies),
        }
        answered = 0
        one: dict[str, list[Measured]] = {name: [] for name in made_requests}
        many: dict[str, list[Measured]] = {name: [] for name in made_requests}
        for number in range(-1, rounds):  # the first one warms and does not count
            for name, ready in made_requests.items():
                lasts = seconds if number >= 0 else min(seconds, 0.5)
                alone = drive(ports[name], ready, 1, lasts, b'"score"')
                crowd = drive(ports[name], ready, CLIENTS, lasts, b'"score"')
                if name == report.OURS:
                    answered += alone.answers + crowd.answers
                    drain(settings, settings.url("model_http"))  # our own backlog must not slow the peer down
                if number >= 0:
                    one[name].append(alone)
                    many[name].append(crowd)
                    report.progress(
                        f"round {number + 1}: {name} p50 {alone.p50_ms:.2f} ms alone, "
                        f"{crowd.per_second:.0f} requests/s with {CLIENTS} clients"
                    )
        events = httpx.get(f"{settings.url('collector')}/status").raise_for_status().json()
    figures: dict[str, Any] = {
        name: {
            "requests_per_s_8_clients": report.spread([each.per_second for each in many[name]]),
            "p50_ms_1_client": report.spread([each.p50_ms for each in one[name]]),
            "p99_ms_1_client": report.spread([each.p99_ms for each in one[name]]),
            "p50_ms_8_clients": report.spread([each.p50_ms for each in many[name]]),
            "p99_ms_8_clients": report.spread([each.p99_ms for each in many[name]]),
        }
        for name in made_requests
    }
    figures[report.OURS] |= {"events_missing": answered - events["received"], "events_lost": events["lost"]}
    rate, latency = (
        report.ratio([get(m) for m in by[report.OURS]], [get(m) for m in by[PEER]], higher_is_better=higher)
        for by, get, higher in ((many, lambda m: m.per_second, True), (one, lambda m: m.p50_ms, False))
    )
    figures[PEER] |= {"ratio_p50_1_client": latency}
    setup = {"instances_per_request": 1, "online_store": "SQLite", "seconds_per_phase": seconds}
    return report.result("serving", chosen.quick, setup, figures, {PEER: rate}, f"requests/s with {CLIENTS} clients")


@contextlib.contextmanager
def _process(settings: Settings, name: str, module: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THROUGHLINE_")}
    environment |= {"THROUGHLINE_HOME": str(settings.home), "THROUGHLINE_PORT_BASE": str(settings.port_base)}
    with (settings.logs / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], stdout=log, stderr=log, env=environment, cwd=PROJECT_ROOT
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(settings: Settings, name: str, process: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(address).is_success:
                return
        time.sleep(0.1)
    last = ((settings.logs / f"{name}.log").read_text().strip().splitlines() or ["nothing in its log"])[-1]
    raise ThroughlineError(f"serving: {name} did not start: {last[:300]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=ABOUT)
    parser.add_argument("--seconds", type=float, help="per phase; default 5, quick 1")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
