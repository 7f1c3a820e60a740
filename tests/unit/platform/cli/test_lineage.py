"""`throughline trace` and `impact`: documented keys, one line and the right exit code for what cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from tests.support import traced_home as home
from tests.support.traced_home import NAME
from throughline.cli.main import app
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings


@pytest.fixture(scope="module")
def home_of(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, str]:
    """A home in which no service runs, and the id of a prediction in it."""
    settings = load_settings(home=tmp_path_factory.mktemp("home"), port_base=1024)
    _, ticks, _ = home.make_home(settings)
    row = ticks.row(-1, named=True)
    return settings, home.log(settings, [home.prediction(row, 1, datetime.now(UTC))])[0]


@pytest.fixture
def call(home_of: tuple[Settings, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THROUGHLINE_HOME", str(home_of[0].home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "1024")
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def result_of(done: Result) -> object:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_trace_is_a_list_of_steps_each_with_kind_id_and_version(call, home_of: tuple[Settings, str]) -> None:
    steps = result_of(call("trace", home_of[1], "--json"))
    assert all({"kind", "id", "version", "missing"} <= set(step) for step in steps)
    assert (steps[0]["kind"], steps[0]["id"]) == ("prediction", home_of[1])
    assert steps[-1]["kind"] == "code"
    keys = {"name", "value", "view", "event_time", "table", "upstream"}
    assert all(keys <= set(feature) for feature in steps[0]["features"])
    (table,) = [step for step in steps if step["kind"] == "feature_table"]
    keys = {"table", "columns", "matched_by", "known_from", "known_before", "of", "rows"}
    assert all(set(part) == keys for part in table["raw"])


def test_the_terminal_shows_every_step_and_what_is_missing(call, home_of: tuple[Settings, str]) -> None:
    done = call("trace", home_of[1])
    assert done.exit_code == 0
    for word in ("prediction", "revision", "gate decision", "feature table", "raw table", "throughline up"):
        assert word in done.stdout
    assert "4 of " in done.stdout  # without MLflow


def test_one_feature_is_shown_with_the_raw_rows_behind_it(call, home_of: tuple[Settings, str]) -> None:
    value = result_of(call("trace", home_of[1], "--feature", "aircraft_delay_168h", "--rows", "4", "--json"))
    assert (value["name"], value["view"]) == ("aircraft_delay_168h", "aircraft_ticks")
    (part,) = value["raw"]
    assert part["table"] == f"{NAME}/raw/flight_departures@0"
    assert len(part["rows"]) == 4
    shown = call("trace", home_of[1], "--feature", "aircraft_seats").stdout
    assert f"{NAME}/raw/planes@0" in shown
    assert "flight_departures" not in shown


def test_an_impact_has_the_documented_keys(call) -> None:
    found = result_of(call("impact", f"{NAME}/raw/planes@0", "--json"))
    assert set(found) == {
        "table", "feature_tables", "datasets", "models", "models_unknown", "predictions", "served_from", "log",
        "log_lost",
    }  # fmt: skip
    assert found["models"] is None
    assert found["served_from"] == 1
    assert "unknown" in call("impact", f"{NAME}/raw/planes@0").stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["trace", "00000000-0000-0000-0000-000000000000"], "is not logged"),
        (["trace", "nothing"], "is no prediction id"),
        (["impact", f"{NAME}/raw/planes@9"], "its versions are 0 to 0"),
    ],
)
def test_what_cannot_be_found_is_one_line(call, arguments: list[str], problem: str) -> None:
    done = call(*arguments)
    assert isinstance(done.exception, ThroughlineError)  # `main` makes a line and exit code 1 of it
    assert problem in str(done.exception)
    assert "\n" not in str(done.exception)


def test_an_unknown_id_ends_the_command_with_1_and_one_line(home_of: tuple[Settings, str]) -> None:
    command = [sys.executable, "-c", "from throughline.cli.main import main; main()", "trace", str(UUID(int=1))]
    environment = {**os.environ, "THROUGHLINE_HOME": str(home_of[0].home), "THROUGHLINE_PORT_BASE": "1024"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "holds 1 predictions" in done.stderr


@pytest.mark.parametrize("arguments", [["impact", "planes"], ["trace"], ["trace", "x", "--rows", "0"]])
def test_a_wrong_call_is_exit_code_2(call, arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_a_feature_that_was_not_used_is_named_with_those_that_were(call, home_of: tuple[Settings, str]) -> None:
    done = call("trace", home_of[1], "--feature", "nothing")
    assert "no feature nothing: it has aircraft_departures_168h, " in str(done.exception)
