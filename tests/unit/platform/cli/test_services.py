"""The command line's promises: exit codes, one line on stderr, only JSON on stdout, light."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from throughline import services
from throughline.cli import main as cli
from throughline.cli import services as commands
from throughline.foundation.errors import ThroughlineError
from throughline.services import ServiceFailed, ServiceStatus, Trouble


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THROUGHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "64980")
    return tmp_path / "home"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["throughline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_a_known_failure_is_one_line_and_exit_code_1_with_the_traceback_in_the_log(monkeypatch, capsys, home) -> None:
    assert run(monkeypatch, "up", "sprak", "--json") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "sprak" in err
    assert "ThroughlineError" in (home / "logs" / "throughline.log").read_text()


def test_an_unexpected_failure_names_the_log_and_shows_no_traceback(monkeypatch, capsys, home) -> None:
    def broken(_settings):
        raise RuntimeError("the disk\nfell off")

    monkeypatch.setattr(services, "status", broken)
    assert run(monkeypatch, "status") == 1
    err = capsys.readouterr().err.strip()
    assert "Traceback" not in err
    assert err.splitlines() == [
        f"Unexpected RuntimeError: the disk fell off: the traceback is in {home / 'logs' / 'throughline.log'}."
    ]
    assert "fell off" in (home / "logs" / "throughline.log").read_text()


def test_bad_settings_are_one_line_even_when_there_is_no_home_to_log_to(monkeypatch, capsys) -> None:
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "eighty")
    assert run(monkeypatch, "status") == 1
    err = capsys.readouterr().err.strip()
    assert "port_base" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("up", "--nonsense"), ("nonsense",), ("status", "extra")])
def test_a_wrong_call_is_exit_code_2(monkeypatch, capsys, arguments) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_a_service_that_failed_shows_the_end_of_its_log_before_the_one_line(monkeypatch, capsys) -> None:
    def failing(*_):
        raise ServiceFailed("mlflow ended (exit status 1): see mlflow.log; `throughline up` starts it again.", ["why"])

    monkeypatch.setattr(services, "up", failing)
    assert run(monkeypatch, "up") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].strip() == "why"
    assert lines[1].startswith("mlflow ended")


@pytest.mark.parametrize(
    ("state", "code"), [("running", 0), ("dead", 1), ("unhealthy", 1), ("starting", 1), ("stopped", 1)]
)
def test_status_succeeds_only_when_every_service_runs(monkeypatch, capsys, state, code) -> None:
    found = [ServiceStatus("spark", "running", "sc://x"), ServiceStatus("mlflow", state, "http://x", "why")]
    monkeypatch.setattr(services, "status", lambda _: found)
    assert run(monkeypatch, "status", "--json") == code
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"services", "models", "rollouts", "troubles"}
    assert printed["services"][0] == {"name": "spark", "state": "running", "address": "sc://x"}
    assert printed["models"] == []


def test_status_names_the_models_that_are_served(monkeypatch, capsys) -> None:
    served = [{"name": "late", "version": 3, "alias": "champion", "share": 1.0}]
    monkeypatch.setattr(services, "status", lambda _: [ServiceStatus("model-server", "running", "http://x")])
    monkeypatch.setattr(services, "served_models", lambda _: served)
    assert run(monkeypatch, "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"] == served
    assert run(monkeypatch, "status") == 0
    assert "late/3  champion  100% of traffic" in capsys.readouterr().out


def test_what_is_deployed_and_not_served_fails_status_and_what_up_cannot_load_fails_up(monkeypatch, capsys) -> None:
    trouble = Trouble("revision v3 of late is deployed, not served: its file was changed", None, "throughline run")
    running = [ServiceStatus("model-server", "running", "http://x")]
    monkeypatch.setattr(services, "status", lambda _: running)
    monkeypatch.setattr(services, "up", lambda *_: running)
    monkeypatch.setattr(services, "served_models", lambda _: [])
    for command, function in (("status", "not_served"), ("up", "load_deployed")):
        monkeypatch.setattr(services, function, lambda *_: {"late": trouble})
        assert run(monkeypatch, command, "--json") == 1
        (printed,) = json.loads(capsys.readouterr().out)["troubles"]
        assert printed == {"what": trouble.what, "since": None, "command": "throughline run"}
        assert run(monkeypatch, command) == 1
        assert f"{trouble.what}: run `throughline run`." in capsys.readouterr().out
        monkeypatch.setattr(services, function, lambda *_: {})
        assert run(monkeypatch, command) == 0
        assert "trouble" not in capsys.readouterr().out


def test_progress_away_from_a_terminal_is_a_line_per_change(monkeypatch, capsys) -> None:
    def starting(_settings, _names, report):
        for state, seconds in (("starting", 0.1), ("starting", 0.4), ("running", 2.0), ("running", 2.2)):
            report("spark", state, seconds)
        report("mlflow", "running", 0.1)  # it ran already: no news
        return [ServiceStatus("spark", "running", "sc://x")]

    monkeypatch.setattr(services, "up", starting)
    assert run(monkeypatch, "up", "--json") == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == ["spark starting (0.1 s)", "spark running (2.0 s)"]
    assert json.loads(out) == {
        "services": [{"name": "spark", "state": "running", "address": "sc://x"}], "troubles": []
    }  # fmt: skip


def test_progress_on_a_terminal_shows_each_service_with_its_state(monkeypatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(commands, "console", screen)
    with commands.progress() as report:
        for service, state in (("spark", "starting"), ("mlflow", "running"), ("spark", "running")):
            report(service, state, 0.1)
    shown = screen.file.getvalue()
    assert all(word in shown for word in ("spark", "starting", "mlflow", "running"))


def test_a_refusal_of_the_library_is_the_error_type_people_read() -> None:
    assert issubclass(ServiceFailed, ThroughlineError)
