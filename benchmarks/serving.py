"""Serving: our model server's full path against servers that do a part of it, side by side in one run.

Owns: the rounds and ratios. Does not own: the processes and the load on them (`serving_bench`), the clients
(`http_client`, `open_client`, `grpc_client`), who takes part (`serving_peers`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks import report, serving_peers
from benchmarks.http_client import Measured
from benchmarks.serving_bench import Bench
from benchmarks.serving_peers import Peer
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, Settings
from throughline.services.ports import take_ports
from throughline.usecase import load_usecases

ABOUT = """
`throughline` is the model server as it is deployed: each request is parsed, its features are read from the online
store (SQLite), scored by an ONNX network and logged as an event, which other processes ship and write meanwhile. The
peers do a part of that, with the same requests or the same features:

- `bare_kserve`: KServe's endpoints over a constant. No features, no model, no event: the ceiling of what any model in
  this framework can reach, not a competitor; the ratio is how much of it is left.
- `mlflow_serve`: what `mlflow models serve` starts, with the same ONNX file. It is given the feature values.
- `bentoml`: a BentoML service with the same ONNX file, in an environment of its own. It is given the feature values.
- `feast_serve`: Feast's feature server over the same online store: the look-up alone.

All over REST on loopback, one worker process each, the client on the same cores. Latencies at half load arrive open: at
half of the rate that the same server reached with 8 clients, counted from the instant each request was due.
"""
CLIENTS = 8
BATCHES = (10, 100)
PORTS = 5  # of the peers
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "throughline" / "peers"


@dataclass
class Rounds:
    """What was measured of one server: closed load of one client and of `CLIENTS`, open load at half of that rate."""

    one: list[Measured] = field(default_factory=list)
    many: list[Measured] = field(default_factory=list)
    half: list[Measured] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        found = {}
        for name, each, get in (
            ("requests_per_s_8_clients", self.many, lambda m: m.per_second),
            ("p50_ms_1_client", self.one, lambda m: m.p50_ms),
            ("p99_ms_1_client", self.one, lambda m: m.p99_ms),
            ("p99_ms_8_clients", self.many, lambda m: m.p99_ms),
            ("p50_ms_half_load", self.half, lambda m: m.p50_ms),
            ("p99_ms_half_load", self.half, lambda m: m.p99_ms),
        ):
            if each:
                found[name] = report.spread([get(measured) for measured in each])
        return found


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    seconds, rounds = chosen.seconds or (0.8 if chosen.quick else 4), chosen.rounds or (2 if chosen.quick else 5)
    usecase = next(iter(load_usecases().values()))
    base = take_ports(len(DEFAULT_PORTS) + PORTS)
    free = iter(range(base + len(DEFAULT_PORTS), base + len(DEFAULT_PORTS) + PORTS))
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as made, contextlib.ExitStack() as stack:
        settings = Settings(home=Path(made), port_base=base)
        settings.logs.mkdir()
        bench, ours = Bench(settings, usecase, stack), serving_peers.ours(settings, usecase)
        bench.start_process("collector", (sys.executable, "-m", "throughline.events.collector"), {})
        peers = [
            serving_peers.bare_kserve(next(free), next(free)),
            serving_peers.mlflow_serve(bench.model, Path(made) / "mlflow_serve", next(free)),
        ]
        for peer in peers:  # while the home is made they import what they need
            bench.start(peer)
        report.progress("making a home with features and a model")
        from benchmarks.serving_home import make_home  # postpones Feast, so that the peers have begun

        instances = make_home(settings, usecase)
        bench.start(ours)
        if not chosen.quick:
            further = [serving_peers.feast_serve(next(free))]
            try:
                environment = serving_peers.bentoml_environment(ENVIRONMENTS)
                further.append(serving_peers.bentoml(bench.model, Path(made), next(free), environment))
            except ThroughlineError as error:
                skipped["bentoml"] = str(error)
            for peer in further:
                bench.start(peer)
            peers += further
        bench.wait("collector", f"{settings.url('collector')}/health")
        for peer in (ours, *peers):
            bench.wait(peer.name, f"http://127.0.0.1:{peer.port}{peer.ready}")
        scores = bench.prepare(instances)
        for peer in peers:
            if peer.does == "the model":
                bench.require_same_scores(peer, scores, min(BATCHES))
        stages, measured = _rounds(bench, [ours, *peers], seconds, rounds)
        variants = {} if chosen.quick else _variants(bench, [ours, *peers], seconds)
        memory = bench.resident_mb()
        bench.settle()
        events = httpx.get(f"{settings.url('collector')}/status").raise_for_status().json()
        missing = bench.predictions - events["received"]
    figures: dict[str, Any] = {}
    for name, each in measured.items():
        figures[name] = {**each.figures, "rss_mb": sum(memory[name].values())}
        figures |= variants.get(name, {})
    figures |= {peer: {"failed": reason} for peer, reason in skipped.items()}
    figures[report.OURS] |= {"events_missing": missing, "events_lost": events["lost"]}
    mine = measured.pop(report.OURS)
    ratios = {}
    for name, each in measured.items():
        ratios[name] = report.ratio(
            [m.per_second for m in mine.many], [m.per_second for m in each.many], higher_is_better=True
        )
        latency = report.ratio([m.p50_ms for m in mine.one], [m.p50_ms for m in each.one], higher_is_better=False)
        figures[name] |= {"ratio_p50_1_client": latency}
    processes = ", ".join(f"{part} {mb:g}" for parts in memory.values() for part, mb in parts.items())
    setup = {
        "instances per request": 1,
        "online store": "SQLite",
        "seconds per phase": seconds,
        "cores": f"{len(os.sched_getaffinity(0))}, shared by all processes and the client, none pinned",
        "processes with their resident MB": f"({processes})",
        "milliseconds by stage of a request of one client": f"({', '.join(f'{n} {ms:g}' for n, ms in stages.items())})",
    }
    found = report.result("serving", chosen.quick, setup, figures, ratios, f"requests/s with {CLIENTS} clients")
    return found | {
        "p50_ms": figures[report.OURS]["p50_ms_1_client"]["median"],
        "p99_ms": figures[report.OURS]["p99_ms_half_load"]["median"],
        "stages": stages,
        "rss_mb": memory[report.OURS][report.OURS],
        "skipped": skipped,
    }


def _rounds(
    bench: Bench, everyone: Sequence[Peer], seconds: float, rounds: int
) -> tuple[dict[str, float], dict[str, Rounds]]:
    """Each in turn, round after round. Returns our stages in milliseconds per request, and everyone's figures."""
    measured = {peer.name: Rounds() for peer in everyone}
    spent: dict[str, list[float]] = {}
    for number in range(-1, rounds):  # the first one warms and does not count
        for peer in everyone:
            ours, lasts = peer.name == report.OURS, seconds if number >= 0 else min(seconds, 0.5)
            before = bench.stages() if ours else {}
            alone = bench.load(peer, 1, 1, lasts)
            after = bench.stages() if ours else {}
            crowd = bench.load(peer, 1, CLIENTS, lasts)
            half = bench.load_open(peer, crowd.per_second / 2, lasts)
            if ours:
                bench.settle()
            if number < 0:
                continue
            for stage, (total, requests) in after.items():
                former, earlier = before.get(stage, (0.0, 0.0))
                if requests > earlier:
                    spent.setdefault(stage, []).append((total - former) / (requests - earlier) * 1000)
            result = measured[peer.name]
            result.one.append(alone)
            result.many.append(crowd)
            result.half.append(half)
            report.progress(
                f"round {number + 1}: {peer.name} p50 {alone.p50_ms:.2f} ms alone, {crowd.per_second:.0f} requests/s "
                f"with {CLIENTS} clients, p99 {half.p99_ms:.2f} ms at half of that"
            )
    return {stage: round(sum(each) / len(each), 4) for stage, each in spent.items()}, measured


def _variants(bench: Bench, everyone: Sequence[Peer], seconds: float) -> dict[str, dict[str, dict[str, Any]]]:
    """Peer -> row of the table -> figures: larger requests, and gRPC."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for peer in everyone:
        rows_of = found[peer.name] = {}
        for rows in BATCHES:
            alone, crowd = (bench.load(peer, rows, clients, seconds) for clients in (1, CLIENTS))
            rows_of[f"{peer.name}, {rows} rows"] = Rounds([alone], [crowd]).figures
        for rows in (1, *BATCHES) if peer.grpc_port else ():
            alone, crowd = (bench.load_grpc(peer, rows, clients, seconds) for clients in (1, CLIENTS))
            size = f", {rows} rows" if rows > 1 else ""
            rows_of[f"{peer.name}, gRPC{size}"] = Rounds([alone], [crowd]).figures
        if peer.name == report.OURS:
            bench.settle()
        for name, figures in rows_of.items():
            report.progress(f"{name}: {figures['requests_per_s_8_clients']['median']:g} requests/s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="per phase; default 4, quick 0.8")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
