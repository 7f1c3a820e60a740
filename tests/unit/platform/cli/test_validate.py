"""`throughline validate`: a draft to be pasted, verdicts with an exit code, and one line for what cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner, Result

from throughline.cli.main import app
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.ingestion.ingest import ingest_days
from throughline.lakehouse.table import DAY, replace_days
from throughline.usecase import Expectations, UseCase, get_usecase

FIRST, LAST = date(2013, 2, 11), date(2013, 2, 13)
WEATHER = "flight_delay/raw/weather"


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, usecase: UseCase) -> Settings:
    """Version 0 of the weather as it was let in; version 1 was written without validation."""
    settings = load_settings(home=tmp_path_factory.mktemp("home"))
    known_until = datetime(2013, 3, 1, tzinfo=UTC)
    ingest_days(settings, usecase, "weather", FIRST, LAST, "r", known_until)
    path = settings.table_path("flight_delay", "raw", "weather")
    rows = pl.read_delta(str(path)).with_columns(
        wind_speed=pl.when((pl.col(DAY) == LAST) & (pl.col("origin") == "EWR")).then(1048.36).otherwise("wind_speed")
    )
    replace_days(path, rows, FIRST, LAST)
    return settings


@pytest.fixture
def call(home: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THROUGHLINE_HOME", str(home.home))

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["validate", *arguments])

    return call


def test_a_draft_is_yaml_to_be_pasted_under_a_table(call) -> None:
    done = call("infer", f"{WEATHER}@0")
    assert done.exit_code == 0, done.output
    section = yaml.safe_load(done.stdout)
    assert list(section) == ["expects"]
    expects = Expectations.model_validate(section["expects"])
    assert expects.columns["origin"].values == ["EWR", "JFK", "LGA"]
    assert expects.columns["wind_gust"].nulls is not None
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


def test_the_same_draft_as_json(call) -> None:
    done = json.loads(call("infer", f"{WEATHER}@0", "--json").stdout)
    assert (done["table"], done["suspicions"]) == (f"{WEATHER}@0", [])
    assert done["expects"] == yaml.safe_load(call("infer", f"{WEATHER}@0").stdout)["expects"]


def test_a_version_that_holds_what_is_expected_passes(call) -> None:
    done = call("check", f"{WEATHER}@0", "--json")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert (result["passed"], result["days"], result["bad_rows"]) == (True, 3, 0)


def test_a_version_that_does_not_fails_with_exit_code_1(call) -> None:
    done = call("check", f"{WEATHER}@1", "--json")
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert not result["passed"]
    assert result["bad_rows"] == 24
    (verdict,) = result["verdicts"]
    assert (verdict["day"], verdict["aspect"], verdict["result"]) == ("2013-02-13", "rows", "fail")
    shown = call("check", f"{WEATHER}@1")
    assert shown.exit_code == 1
    assert "2013-02-13 rows: fail, 33.3% of the rows are bad" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("command", "table", "problem"),
    [
        ("infer", "flight_delay/raw/nothing@0", "flight_delay/raw/nothing does not exist"),
        ("infer", f"{WEATHER}@7", f"{WEATHER}@7 does not exist yet: the newest version is {WEATHER}@1"),
        ("check", f"{WEATHER}@7", "does not exist yet"),
        ("check", "nobody/raw/weather@0", "Unknown use case 'nobody'"),
        ("check", "flight_delay/quarantine/weather@0", "Nothing is expected of flight_delay/quarantine/weather"),
    ],
)
def test_what_is_not_there_is_one_line(call, command: str, table: str, problem: str) -> None:
    done = call(command, table)
    assert isinstance(done.exception, ThroughlineError)
    assert problem in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("table", [WEATHER, f"{WEATHER}@", f"{WEATHER}@-1", "weather@0", "../../etc/passwd@0", ""])
@pytest.mark.parametrize("command", ["infer", "check"])
def test_what_is_no_table_at_a_version_is_a_wrong_call(call, command: str, table: str) -> None:
    assert call(command, table).exit_code == 2


def test_the_installed_command_has_it(home: Settings) -> None:
    command = [str(Path(sys.executable).with_name("throughline")), "validate", "check", f"{WEATHER}@9"]
    environment = {**os.environ, "THROUGHLINE_HOME": str(home.home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "does not exist yet" in done.stderr
