"""`throughline feedback` reports to the collector; a wrong call is exit code 2, a refusal one line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from typer.testing import CliRunner

from throughline.cli import feedback as command
from throughline.cli.main import app
from throughline.events.collector import create_app
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.services.ports import take_ports

ONE = "6f2c2c5e-8a52-4b1c-9a55-0d5b1c9d2f10"


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    made = Settings(home=tmp_path / "home", port_base=take_ports())
    monkeypatch.setattr(command, "load_settings", lambda: made)
    return made


@pytest.fixture
def collector(settings) -> Iterator[None]:
    config = uvicorn.Config(create_app(settings), port=settings.port("collector"), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield
    server.should_exit = True
    thread.join(20)


def run(*arguments: str):
    return CliRunner().invoke(app, ["feedback", *arguments], standalone_mode=False)


def test_a_report_is_taken_and_shown(collector, settings):
    done = run(ONE, "true", "--json", "--source", "ops", "--time", "2013-03-31T12:00:00Z")
    assert done.exception is None
    shown = {
        "usecase": "flight_delay",
        "prediction_id": ONE,
        "value": 1,
        "time": "2013-03-31T12:00:00Z",
        "source": "ops",
    }
    assert json.loads(done.stdout) == shown
    assert ONE in run(ONE, "0").stdout


@pytest.mark.parametrize("arguments", [(ONE, "2"), (ONE,), (ONE, "late"), ()])
def test_a_wrong_call_is_not_sent(settings, arguments):
    assert CliRunner().invoke(app, ["feedback", *arguments]).exit_code == 2


def test_a_refusal_and_a_collector_that_is_away_are_one_line(collector, settings, monkeypatch):
    refused = run("7", "1").exception
    assert isinstance(refused, ThroughlineError)
    assert "prediction_id" in str(refused)
    unknown = run(ONE, "1", "--usecase", "nothing").exception
    assert "no declared use case" in str(unknown)
    away = settings.model_copy(update={"port_base": take_ports()})
    monkeypatch.setattr(command, "load_settings", lambda: away)
    assert "throughline up" in str(run(ONE, "1").exception)


def test_of_several_use_cases_the_one_that_logged_the_prediction_is_meant(settings, monkeypatch):
    monkeypatch.setattr(command, "load_usecases", lambda: {"a": None, "b": None})
    with pytest.raises(ThroughlineError, match="give --usecase, one of a, b"):
        command._usecase_of(settings, ONE)
