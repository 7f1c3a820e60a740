"""`status` shows events and rows that wait or were set aside, each with the command that shows more."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.support.events import prediction
from throughline.events.collector import create_app
from throughline.events.outbox import Outbox
from throughline.events.spool import STATUS, Cursor, ShippingStatus, segment_path, segments
from throughline.foundation.settings import Settings
from throughline.journal.set_aside import SetAside
from throughline.services import health
from throughline.services.ports import take_ports
from throughline.services.undelivered import undelivered

NAME = "flight_delay"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_a_home_in_which_all_is_well_has_no_troubles(settings, monkeypatch):
    assert undelivered(settings, collector_runs=False) == []
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        monkeypatch.setattr(health, "get_json", lambda url, _: client.get(url.partition("/")[2][-7:]).json())
        assert undelivered(settings, collector_runs=True) == []


def test_what_waits_in_the_outbox_and_what_was_refused_is_shown(settings):
    settings.outboxes.mkdir(parents=True)
    since = "2026-11-30T12:00:00+00:00"
    ShippingStatus(set_aside=2, failure={"what": "the collector does not answer", "since": since}).write(
        settings.outboxes
    )
    waiting, refused = undelivered(settings, collector_runs=False)
    assert (waiting.what, waiting.since) == ("Events of the model server wait: the collector does not answer", since)
    assert "model-server.log" in waiting.command
    assert "2 events" in refused.what
    assert refused.command.endswith("spool/outbox/set-aside.jsonl")


def test_events_that_no_process_sends_are_shown_after_a_minute(settings):
    outbox = Outbox(settings.outboxes / "0")
    assert undelivered(settings, collector_runs=False) == []
    outbox.publish([prediction()])
    assert undelivered(settings, collector_runs=False) == []  # on its way
    ShippingStatus().write(settings.outboxes)
    ago = time.time() - 90
    os.utime(settings.outboxes / STATUS, (ago, ago))
    (waiting,) = undelivered(settings, collector_runs=False)
    assert ("no process sends them" in waiting.what, waiting.command) == (True, "throughline up")
    (first,) = segments(settings.outboxes / "0")
    size = segment_path(settings.outboxes / "0", first).stat().st_size
    ShippingStatus(cursors={"0": Cursor(first, size, 1)}).write(settings.outboxes)
    os.utime(settings.outboxes / STATUS, (ago, ago))
    assert undelivered(settings, collector_runs=False) == []  # all is sent
    outbox.close()


def test_a_table_that_cannot_be_written_and_lines_set_aside_by_the_collector_are_shown(settings, monkeypatch):
    broken = settings.table_path(NAME, "monitoring", "inference_log") / "_delta_log" / f"{0:020d}.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("no commit")
    spool = settings.serving_home / "spool" / "sources"
    spool.mkdir(parents=True)
    SetAside(spool).add([(b"{", "cannot be read")])
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        status = client.get("/status").json() | {"lost": 3}
    monkeypatch.setattr(health, "get_json", lambda *_: json.loads(json.dumps(status)))
    stuck, lost, aside = undelivered(settings, collector_runs=True)
    assert f"The inference log of {NAME} cannot be written" in stuck.what
    assert (stuck.since is not None, "collector.log" in stuck.command) == (True, True)
    assert lost.what.startswith("3 events are missing")
    assert "1 pushed rows" in aside.what
    assert aside.command.endswith("spool/sources/set-aside.jsonl")


def test_a_collector_that_does_not_report_its_state_is_a_trouble(settings):
    (trouble,) = undelivered(settings.model_copy(update={"port_base": take_ports()}), collector_runs=True)
    assert "does not report its state" in trouble.what
