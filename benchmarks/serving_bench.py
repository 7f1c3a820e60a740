"""The bench of the serving benchmark: a home, its services and the peers as processes, and load on one of them.

Owns: starting and ending processes, their memory, our server's stages, the features that it read. Does not own: the
home's content (`serving_home`), who takes part (`serving_peers`), the order of the rounds (`serving`).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import serving_peers
from benchmarks.http_client import Measured, drive
from benchmarks.open_client import drive_open
from benchmarks.report import OURS
from benchmarks.serving_peers import Given, Peer
from throughline.events.client import drain, snapshot
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.lakehouse.table import read
from throughline.models.served_model import ServedModel, sha256_of
from throughline.usecase import UseCase

START_S = 120
_STAGE = "throughline_stage_seconds"


class Bench:
    """A home whose services run, and the peers beside them; they end with `stack`."""

    given: Given  # set by `prepare`

    def __init__(self, settings: Settings, usecase: UseCase, stack: contextlib.ExitStack) -> None:
        self.settings, self.usecase = settings, usecase
        self.predictions = 0  # that our server answered
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = stack
        self._made: dict[tuple[str, int], list[bytes]] = {}

    @property
    def model(self) -> Path:
        return self.settings.serving_home / self.usecase.name / "1" / "model.onnx"

    def start(self, peer: Peer) -> None:
        self.start_process(peer.name, peer.command, peer.environment, peer.folder)

    def start_process(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path = PROJECT_ROOT
    ) -> None:
        self._processes[name] = self._stack.enter_context(_process(self.settings, name, command, environment, folder))

    def wait(self, name: str, address: str) -> None:
        """Until the process answers. Raises `ThroughlineError` with the last line of its log when it does not."""
        deadline, process = time.monotonic() + START_S, self._processes[name]
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(address).is_success:
                    return
            time.sleep(0.1)
        log = (self.settings.logs / f"{name}.log").read_text().strip()
        last = (log.splitlines() or ["nothing in its log"])[-1]
        raise ThroughlineError(f"serving: {name} did not start: {last[:300]}")

    def prepare(self, instances: Sequence[dict[str, Any]]) -> list[float]:
        """Have our server score every instance; keep the features that it used. Returns the scores."""
        url = f"{self.settings.url('model_http')}/v1/models/{self.usecase.name}:predict"
        answer = httpx.post(url, json={"instances": list(instances)}, timeout=60).raise_for_status()
        predictions = answer.json()["predictions"]
        self.predictions += len(predictions)
        self.settle()
        table = snapshot(self.settings, self.usecase).table
        if table is None:
            raise ThroughlineError("serving: no prediction is in the inference log.")
        rows = read(self.settings, table).select("id", "features").collect().to_dicts()
        logged = {row["id"]: json.loads(row["features"]) for row in rows}
        features = [logged[each["prediction_id"]] for each in predictions]
        model = ServedModel.load(self.model, sha256_of(self.model))
        self.given = Given(
            self.usecase,
            instances,
            [[each[name] for name in model.numeric] for each in features],
            [["" if each[name] is None else str(each[name]) for name in model.categorical] for each in features],
        )
        return [each["score"] for each in predictions]

    def require_same_scores(self, peer: Peer, ours: Sequence[float], rows: int) -> None:
        """A peer that runs the model must give our scores. Raises `ThroughlineError`."""
        body = self._bodies(peer, rows)[0].partition(b"\r\n\r\n")[2]
        url = f"http://127.0.0.1:{peer.port}{peer.path}"
        answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
        if answer.is_error:
            raise ThroughlineError(f"serving: {peer.name} refuses the features: {answer.text[:300]}")
        theirs = serving_peers.scores(peer.name, answer.content)
        if len(theirs) != rows or any(abs(a - b) > 1e-5 for a, b in zip(theirs, ours, strict=False)):
            raise ThroughlineError(f"serving: {peer.name} scores {theirs}, our server {list(ours[:rows])}.")

    def load(self, peer: Peer, rows: int, clients: int, seconds: float) -> Measured:
        """Closed load: each of the clients sends again after its answer."""
        return self._count(peer, rows, drive(peer.port, self._bodies(peer, rows), clients, seconds, peer.marker))

    def load_open(self, peer: Peer, rate: float, seconds: float) -> Measured:
        """Open load of one row per request."""
        return self._count(peer, 1, drive_open(peer.port, self._bodies(peer, 1), rate, seconds, peer.marker))

    def load_grpc(self, peer: Peer, rows: int, clients: int, seconds: float) -> Measured:
        """As `load`, over gRPC."""
        from benchmarks import grpc_client

        model = self.usecase.name if peer.name == OURS else "trivial"
        made = grpc_client.requests(self.usecase, model, self.given.instances, rows)
        return self._count(peer, rows, grpc_client.drive_grpc(peer.grpc_port or 0, made, clients, seconds))

    def settle(self) -> None:
        """Our own backlog must not slow the peers down."""
        drain(self.settings, self.settings.url("model_http"))

    def stages(self) -> dict[str, tuple[float, float]]:
        """Stage of a request -> (seconds, requests) so far, from our server's metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.settings.url('model_http')}/metrics").raise_for_status().text
        found: dict[str, dict[str, float]] = {f"{_STAGE}_sum": {}, f"{_STAGE}_count": {}}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name][sample.labels["stage"]] = sample.value
        seconds, requests = found.values()
        return {stage: (seconds[stage], requests[stage]) for stage in seconds}

    def resident_mb(self) -> dict[str, dict[str, float]]:
        """Process -> resident memory in MB of itself, by its name, and of its children, each by what it runs."""
        found = {}
        for name, running in self._processes.items():
            process = psutil.Process(running.pid)
            parts = {name: process}
            for child in process.children(recursive=True):
                words = child.cmdline()
                runs = words[words.index("-m") + 1] if "-m" in words else child.name()
                parts[f"{name}: {runs} {child.pid}" if f"{name}: {runs}" in parts else f"{name}: {runs}"] = child
            found[name] = {part: round(each.memory_info().rss / 2**20) for part, each in parts.items()}
        return found

    def _bodies(self, peer: Peer, rows: int) -> list[bytes]:
        if (peer.name, rows) not in self._made:
            self._made[peer.name, rows] = self.given.bodies(peer, rows)
        return self._made[peer.name, rows]

    def _count(self, peer: Peer, rows: int, found: Measured) -> Measured:
        if peer.name == OURS:
            self.predictions += found.answers * rows
        return found


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
