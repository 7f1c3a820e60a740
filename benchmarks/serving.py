"""Serving: our model server's full path against servers that do a part of it, side by side in one run.

Owns: the processes, rounds and ratios. Does not own: the home (`serving_home`), the clients (`http_client`,
`open_client`, `grpc_client`), who takes part (`serving_peers`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import report, serving_peers
from benchmarks.http_client import Measured, drive
from benchmarks.open_client import drive_open
from benchmarks.serving_peers import Given, Peer, bodies_v1
from throughline.events.client import drain, snapshot
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, PROJECT_ROOT, Settings
from throughline.lakehouse.table import read
from throughline.models.served_model import ServedModel, sha256_of
from throughline.services.ports import take_ports
from throughline.usecase import UseCase, load_usecases

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
START_S = 120
ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "throughline" / "peers"


@dataclass
class Rounds:
    """What was measured of one server: closed load of one client and of `CLIENTS`, open load at half of that."""

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


class Bench:
    """A home whose services run, and the peers beside them."""

    def __init__(self, settings: Settings, usecase: UseCase, stack: contextlib.ExitStack) -> None:
        self.settings, self.usecase = settings, usecase
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.predictions = 0  # that our server answered
        self._stack = stack

    def start(
        self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None, folder: Path = PROJECT_ROOT
    ) -> None:
        self.processes[name] = self._stack.enter_context(_process(self.settings, name, command, more or {}, folder))

    def wait(self, name: str, address: str) -> None:
        _wait(self.settings, name, self.processes[name], address)

    def settle(self) -> None:
        """Our own backlog must not slow the peers down."""
        drain(self.settings, self.settings.url("model_http"))

    def ours(self, instances: Sequence[dict[str, Any]]) -> Peer:
        path, port = f"/v1/models/{self.usecase.name}:predict", self.settings.port("model_http")
        bodies = {rows: bodies_v1(path, instances, rows) for rows in (1, *BATCHES)}
        return Peer(
            report.OURS, (), port, "", bodies, b'"score"', "the full path", grpc_port=self.settings.port("model_grpc")
        )

    def load(self, peer: Peer, rows: int, clients: int, seconds: float) -> Measured:
        return self._count(peer, rows, drive(peer.port, peer.bodies[rows], clients, seconds, peer.marker))

    def load_open(self, peer: Peer, rate: float, seconds: float) -> Measured:
        return self._count(peer, 1, drive_open(peer.port, peer.bodies[1], rate, seconds, peer.marker))

    def load_grpc(
        self, peer: Peer, instances: Sequence[dict[str, Any]], rows: int, clients: int, seconds: float
    ) -> Measured:
        from benchmarks import grpc_client

        model = self.usecase.name if peer.name == report.OURS else "trivial"
        made = grpc_client.requests(self.usecase, model, instances, rows)
        return self._count(peer, rows, grpc_client.drive_grpc(peer.grpc_port or 0, made, clients, seconds))

    def stages(self) -> dict[str, tuple[float, float]]:
        """Stage of a request -> (seconds, requests) so far, from our server's metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.settings.url('model_http')}/metrics").raise_for_status().text
        totals: dict[str, list[float]] = {}
        for family in text_string_to_metric_families(text):
            if family.name == "throughline_stage_seconds":
                for sample in family.samples:
                    place = {"throughline_stage_seconds_sum": 0, "throughline_stage_seconds_count": 1}.get(sample.name)
                    if place is not None:
                        totals.setdefault(sample.labels["stage"], [0.0, 0.0])[place] += sample.value
        return {stage: (seconds, count) for stage, (seconds, count) in totals.items()}

    def resident_mb(self, name: str) -> dict[str, float]:
        """Resident memory of a process and, each by what it runs, of its children."""
        process = psutil.Process(self.processes[name].pid)
        found = {name: process.memory_info().rss / 2**20}
        for child in process.children(recursive=True):
            words = child.cmdline()
            found[f"{name}: {words[words.index('-m') + 1] if '-m' in words else child.name()}"] = (
                child.memory_info().rss / 2**20
            )
        return {what: round(megabytes) for what, megabytes in found.items()}

    def _count(self, peer: Peer, rows: int, found: Measured) -> Measured:
        if peer.name == report.OURS:
            self.predictions += found.answers * rows
        return found


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.serving_home import make_home

    seconds, rounds = chosen.seconds or (1 if chosen.quick else 4), chosen.rounds or (2 if chosen.quick else 5)
    usecase = next(iter(load_usecases().values()))
    base = take_ports(len(DEFAULT_PORTS) + 5)
    free = iter(range(base + len(DEFAULT_PORTS), base + len(DEFAULT_PORTS) + 5))
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as made, contextlib.ExitStack() as stack:
        bench = Bench(settings := Settings(home=Path(made), port_base=base), usecase, stack)
        settings.logs.mkdir()
        bench.start("collector", (sys.executable, "-m", "throughline.events.collector"))
        report.progress("making a home with features and a model")
        instances = make_home(settings, usecase)
        bench.start("model-server", (sys.executable, "-m", "serving"))
        bench.wait("collector", f"{settings.url('collector')}/health")
        bench.wait("model-server", f"{settings.url('model_http')}/v2/models/{usecase.name}/ready")
        given, scores = _given(bench, instances, Path(made))
        sizes = (1, *BATCHES)
        peers = [
            serving_peers.bare_kserve(given, next(free), next(free), sizes),
            serving_peers.mlflow_serve(given, next(free), sizes),
        ]
        if not chosen.quick:
            peers.append(serving_peers.feast_serve(given, next(free), sizes))
            try:
                environment = serving_peers.bentoml_environment(ENVIRONMENTS)
                peers.append(serving_peers.bentoml(given, next(free), sizes, environment))
            except ThroughlineError as error:
                skipped["bentoml"] = str(error)
        for peer in peers:
            bench.start(peer.name, peer.command, peer.environment, peer.folder)
        for peer in peers:
            bench.wait(peer.name, f"http://127.0.0.1:{peer.port}{peer.ready}")
            if peer.does == "the model":
                _same_scores(peer, scores)
        ours = bench.ours(instances)
        stages, measured = _rounds(bench, [ours, *peers], seconds, rounds)
        variants = {} if chosen.quick else _variants(bench, [ours, *peers], instances, seconds)
        names = {report.OURS: "model-server"} | {peer.name: peer.name for peer in peers}
        memory = {name: bench.resident_mb(name) for name in bench.processes}
        bench.settle()
        events = httpx.get(f"{settings.url('collector')}/status").raise_for_status().json()
    figures: dict[str, Any] = {}
    for name, each in measured.items():
        resident = memory[names[name]]
        figures[name] = {**each.figures, "rss_mb": sum(resident.values())}
        figures |= variants.get(name, {})
    figures |= {peer: {"failed": reason} for peer, reason in skipped.items()}
    figures[report.OURS] |= {"events_missing": bench.predictions - events["received"], "events_lost": events["lost"]}
    mine = measured.pop(report.OURS)
    ratios = {
        name: report.ratio([m.per_second for m in mine.many], [m.per_second for m in each.many], higher_is_better=True)
        for name, each in measured.items()
    }
    for name, each in measured.items():
        latency = report.ratio([m.p50_ms for m in mine.one], [m.p50_ms for m in each.one], higher_is_better=False)
        figures[name] |= {"ratio_p50_1_client": latency}
    processes = {what: megabytes for each in memory.values() for what, megabytes in each.items()}
    setup = {
        "instances per request": 1,
        "online store": "SQLite",
        "seconds per phase": seconds,
        "processes (MB resident), with the client on the same cores": ", ".join(
            f"{n} {mb}" for n, mb in processes.items()
        ),
        "cores": len(os.sched_getaffinity(0)),
        "stages of a request of one client, ms": ", ".join(f"{n} {ms:g}" for n, ms in stages.items()) or "not exported",
    }
    found = report.result("serving", chosen.quick, setup, figures, ratios, f"requests/s with {CLIENTS} clients")
    return found | {
        "p50_ms": figures[report.OURS]["p50_ms_1_client"]["median"],
        "p99_ms": figures[report.OURS]["p99_ms_half_load"]["median"],
        "stages": stages,
        "rss_mb": memory["model-server"]["model-server"],
        "skipped": skipped,
    }


def _rounds(
    bench: Bench, all_peers: Sequence[Peer], seconds: float, rounds: int
) -> tuple[dict[str, float], dict[str, Rounds]]:
    """Each in turn, round after round; the stages of our requests in milliseconds, and everyone's figures."""
    measured = {peer.name: Rounds() for peer in all_peers}
    spent: dict[str, list[float]] = {}
    for number in range(-1, rounds):  # the first one warms and does not count
        for peer in all_peers:
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
            for stage, (total, count) in after.items():
                first, start = before.get(stage, (0.0, 0.0))
                if count > start:
                    spent.setdefault(stage, []).append((total - first) / (count - start) * 1000)
            for kind, found in zip(("one", "many", "half"), (alone, crowd, half), strict=True):
                getattr(measured[peer.name], kind).append(found)
            report.progress(
                f"round {number + 1}: {peer.name} p50 {alone.p50_ms:.2f} ms alone, {crowd.per_second:.0f} requests/s "
                f"with {CLIENTS} clients, p99 {half.p99_ms:.2f} ms at half of that"
            )
    return {stage: round(sum(each) / len(each), 4) for stage, each in spent.items()}, measured


def _variants(
    bench: Bench, all_peers: Sequence[Peer], instances: Sequence[dict[str, Any]], seconds: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Peer -> row of the table -> figures: larger requests, and gRPC."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for peer in all_peers:
        rows_of: dict[str, dict[str, Any]] = {}
        for rows in BATCHES:
            rows_of[f"{peer.name}, {rows} rows"] = _pair(
                bench.load(peer, rows, 1, seconds), bench.load(peer, rows, CLIENTS, seconds)
            )
        if peer.grpc_port:
            for rows in (1, *BATCHES):
                rows_of[f"{peer.name}, gRPC{f', {rows} rows' if rows > 1 else ''}"] = _pair(
                    bench.load_grpc(peer, instances, rows, 1, seconds),
                    bench.load_grpc(peer, instances, rows, CLIENTS, seconds),
                )
        if peer.name == report.OURS:
            bench.settle()
        report.progress(
            f"{peer.name}: "
            + "; ".join(
                f"{n.removeprefix(peer.name + ', ')} {f['requests_per_s_8_clients']['median']:g}/s"
                for n, f in rows_of.items()
            )
        )
        found[peer.name] = rows_of
    return found


def _pair(alone: Measured, crowd: Measured) -> dict[str, Any]:
    return Rounds([alone], [crowd]).figures


def _given(bench: Bench, instances: Sequence[dict[str, Any]], scratch: Path) -> tuple[Given, list[float]]:
    """The features that our server used for each instance, from its own log, and its scores."""
    usecase, settings = bench.usecase, bench.settings
    path = settings.serving_home / usecase.name / "1" / "model.onnx"
    model = ServedModel.load(path, sha256_of(path))
    url = f"{settings.url('model_http')}/v1/models/{usecase.name}:predict"
    answer = httpx.post(url, json={"instances": list(instances)}, timeout=60).raise_for_status().json()["predictions"]
    bench.predictions += len(answer)
    bench.settle()
    table = snapshot(settings, usecase).table
    if table is None:
        raise ThroughlineError("serving: no prediction is in the inference log.")
    logged = {
        row["id"]: json.loads(row["features"])
        for row in read(settings, table).select("id", "features").collect().to_dicts()
    }
    features = [logged[each["prediction_id"]] for each in answer]
    numeric = [[each[name] for name in model.numeric] for each in features]
    categorical = [["" if each[name] is None else str(each[name]) for name in model.categorical] for each in features]
    return Given(usecase, instances, numeric, categorical, path, scratch), [each["score"] for each in answer]


def _same_scores(peer: Peer, ours: Sequence[float]) -> None:
    """A peer that runs the model must give our scores. Raises `ThroughlineError`."""
    rows = min(BATCHES)
    head, _, body = peer.bodies[rows][0].partition(b"\r\n\r\n")
    url = f"http://127.0.0.1:{peer.port}{head.split()[1].decode()}"
    answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
    if answer.is_error:
        raise ThroughlineError(f"serving: {peer.name} refuses the features: {answer.text[:300]}")
    theirs = serving_peers.scores(peer.name, answer.content)
    if len(theirs) != rows or any(abs(a - b) > 1e-5 for a, b in zip(theirs, ours, strict=False)):
        raise ThroughlineError(f"serving: {peer.name} scores {theirs}, our server {list(ours[:rows])}.")


@contextlib.contextmanager
def _process(
    settings: Settings, name: str, command: Sequence[str], more: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THROUGHLINE_")}
    environment |= {"THROUGHLINE_HOME": str(settings.home), "THROUGHLINE_PORT_BASE": str(settings.port_base), **more}
    with (settings.logs / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
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
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="per phase; default 4, quick 1")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
