"""Whatever is killed and whenever, each answered prediction is in the inference log once, and gaps are none."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from tests.support import servers
from throughline.events.outbox import Outbox
from throughline.events.shipping_process import ShippingProcess
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.services.ports import take_ports

pytestmark = pytest.mark.e2e

WRITER = PROJECT_ROOT / "tests" / "support" / "event_writer.py"


class Log:
    """A home with a process that publishes predictions, its shipping process, and a collector."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.settings = Settings(home=home, port_base=take_ports())
        self.answers = home / "answers"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)]),
            "THROUGHLINE_HOME": str(self.settings.home),
            "THROUGHLINE_PORT_BASE": str(self.settings.port_base),
        }
        module = ["-m", "throughline.events.collector"] if name == "collector" else [str(WRITER)]
        log = self.settings.home / f"{name}.log"
        with log.open("ab") as errors, self.answers.open("ab") as answers:
            self.running[name] = subprocess.Popen(
                [sys.executable, *module], stdout=answers, stderr=errors, env=environment, cwd=PROJECT_ROOT
            )
        if name == "collector":
            address = f"{self.settings.url('collector')}/health"
            port = self.settings.port("collector")
            servers.wait_until_ready(self.running[name], port, lambda: servers.get_ok(address), log)

    def kill(self, name: str) -> None:
        if name != "shipping":
            process = self.running.pop(name)
            process.kill()
            process.wait()
            return
        for child in psutil.Process(self.running["writer"].pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def answered(self) -> list[str]:
        """Ids of whole lines: a killed writer leaves half a line of an answer that nobody got."""
        *lines, _ = self.answers.read_text().split("\n")
        return [word for line in lines for word in line.split() if len(word) == 36]

    def drain(self) -> dict:
        """Send and write all that is left, as the next start of a server does."""
        outbox, shipping = Outbox(self.settings.outboxes / "0"), ShippingProcess(self.settings)
        deadline = time.monotonic() + 60
        while outbox.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        shipping.close()
        outbox.close()
        with client_of(self.settings, "collector") as collector:
            assert collector.post("/flush").json()["failed"] == {}
            return collector.get("/status").json()


def test_each_answered_prediction_is_logged_once_though_every_process_is_killed_at_random_moments(tmp_path):
    log, chance = Log(tmp_path / "home"), random.Random()
    try:
        log.start("collector")
        log.start("writer")
        victims = ["writer", "shipping", "collector"] * 2
        chance.shuffle(victims)
        for victim in victims:
            time.sleep(chance.uniform(0.1, 0.8))
            log.kill(victim)
            if victim == "collector":
                time.sleep(chance.uniform(0, 1))  # events wait meanwhile
            if victim != "shipping":  # its parent starts it again
                log.start(victim)
        log.kill("writer")
        status = log.drain()
    finally:
        for name in list(log.running):
            log.kill(name)
    answered = log.answered()
    table = pl.read_delta(str(log.settings.table_path("flight_delay", "monitoring", "inference_log")))
    assert len(answered) > 1000
    assert len(set(answered)) == len(answered)
    assert set(answered) - set(table["id"]) == set()
    assert table["id"].n_unique() == table.height
    numbers = table.group_by("source").agg(
        pl.len().alias("rows"), pl.max("sequence"), pl.min("sequence").alias("first")
    )
    assert numbers.filter((pl.col("rows") != pl.col("sequence")) | (pl.col("first") != 1)).height == 0
    assert (status["lost"], status["pending"], status["written"]) == (0, 0, table.height)
