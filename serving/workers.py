"""Several worker processes behind one address: starting them, and what they do as one.

Owns: the parent process with the listening socket and the process that ships events; one load for all; one set of
metrics over all. Does not own: what a worker does (`server.py`). The revision file is the one state of all routers.

Workers reach each other on ports of loopback that the kernel gives them, named in files of the home.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from throughline.events.shipping_process import ShippingProcess
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import write_atomic
from throughline.foundation.security.calls import headers_of
from throughline.foundation.settings import PROJECT_ROOT, Settings

log = logging.getLogger(__name__)

PEER_HEADER = "x-throughline-worker"
# whether the request that is being answered was sent by another worker, which sends it to all others itself
FROM_PEER: ContextVar[bool] = ContextVar("from_peer", default=False)
LOAD_S = 120.0
SCRAPE_S = 5.0
STOP_S = 20.0
RESTART_S = 1.0
# What each worker shows of the whole, or of itself alone; everything else is a sum over the workers.
_SAME = (
    "throughline_model_info",
    "throughline_revision_weight",
    "throughline_events_sent",
    "throughline_events_set_aside",
    "python_info",
    "process_start",
)


def run_workers(settings: Settings, listening: socket.socket) -> None:
    """Keep `settings.model_workers` workers running until SIGTERM or SIGINT; one that ends is started again."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    os.set_inheritable(listening.fileno(), True)
    shipping = ShippingProcess(settings)
    workers = {number: _start(number, listening) for number in range(settings.model_workers)}
    try:
        while not stopping.wait(RESTART_S):
            for number, process in workers.items():
                if (code := process.poll()) is not None:
                    log.error("Worker %d ended (exit status %d). It is started again.", number, code)
                    workers[number] = _start(number, listening)
    finally:
        for process in workers.values():
            process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in workers.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shipping.close()


def _start(number: int, listening: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, *sys.orig_argv[1:], "--worker", str(number), "--listening", str(listening.fileno())]
    return subprocess.Popen(command, pass_fds=[listening.fileno()], cwd=PROJECT_ROOT)


def end_with_parent() -> None:
    """Have this process stop as by SIGTERM when the one that started it ends, killed or not."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(RESTART_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@dataclass(frozen=True)
class Worker:
    """One of several: its number, and the listening socket of all."""

    number: int
    listening: socket.socket

    @classmethod
    def of_arguments(cls, arguments: list[str]) -> Worker | None:
        """From the command line that `run_workers` gives its workers; None for any other."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--worker", type=int)
        parser.add_argument("--listening", type=int)
        given = parser.parse_args(arguments)
        return None if given.worker is None else cls(given.worker, socket.socket(fileno=given.listening))


class Peers:
    """The other workers of a model server, as one of them reaches them."""

    def __init__(self, settings: Settings, number: int, port: int) -> None:
        self._settings = settings
        self._number = number
        self._folder = settings.serving_home / "workers"
        self._headers = headers_of(settings, "model_http") | {PEER_HEADER: str(number)}
        write_atomic(self._path(number), json.dumps({"port": port}))

    def load(self, verb: str, usecase: str) -> None:
        """Have the others load or unload what this one did. Raises `ThroughlineError` when one of them refuses."""
        for number, port in self._ports():
            try:
                answer = httpx.post(
                    f"http://127.0.0.1:{port}/v2/repository/models/{usecase}/{verb}",
                    headers=self._headers,
                    timeout=LOAD_S,
                    trust_env=False,
                )
            except httpx.HTTPError:
                log.exception("Worker %d does not answer: it loads what is deployed when it is started again", number)
                continue
            if answer.is_error:
                raise ThroughlineError(f"worker {number} refused it: {answer.text[:300]}")

    def metrics(self, own: bytes) -> bytes:
        """The metrics of all workers. One that does not answer is left out: its counts are missing until it does."""
        texts = [own.decode()]
        for number, port in self._ports():
            try:
                answer = httpx.get(
                    f"http://127.0.0.1:{port}/metrics", headers=self._headers, timeout=SCRAPE_S, trust_env=False
                )
                texts.append(answer.raise_for_status().text)
            except httpx.HTTPError as error:
                log.warning("Worker %d gives no metrics: %s", number, error)
        return merged(texts)

    def _ports(self) -> Iterator[tuple[int, int]]:
        for number in range(self._settings.model_workers):
            path = self._path(number)
            if number != self._number and path.exists():
                yield number, json.loads(path.read_text())["port"]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.json"


def merged(texts: Iterable[str]) -> bytes:
    """Metrics of several processes in Prometheus' text format as those of one: sums, and what all show alike once."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(dict)
    for text in texts:
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            held = values[family.name]
            for sample in family.samples:
                key = sample.name, tuple(sample.labels.items())
                if key in held and not family.name.startswith(_SAME):
                    held[key] += sample.value
                else:
                    held[key] = max(sample.value, held.get(key, sample.value))
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return generate_latest(_Fixed(families.values()))


class _Fixed(CollectorRegistry):
    """A registry of families that are already collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
