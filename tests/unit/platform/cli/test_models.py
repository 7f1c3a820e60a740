"""`throughline models`: what is registered as a table or as JSON alone on stdout; wrong calls end with 2."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from throughline.cli.main import app
from throughline.foundation.errors import ThroughlineError
from throughline.models import description
from throughline.models.description import VersionSummary
from throughline.usecase import load_usecases


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THROUGHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "64980")


def version(number: int, **changes: object) -> VersionSummary:
    fields = {
        "model": f"u/{number}", "aliases": [], "trainer": "own", "dataset": "f" * 64, "dataset_table": None,
        "auc": None, "decision": None, "parent": None, "card": None,
        "registered": datetime(2024, 11, 20, 8, 30, tzinfo=UTC),
    }  # fmt: skip
    return VersionSummary(**{**fields, **changes})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [version(2, aliases=["champion"], auc=0.7654, decision="release"), version(1)]
    first = next(iter(load_usecases()))
    monkeypatch.setattr(description, "summaries", lambda settings, name: found if name == first else [])


def test_versions_are_a_table_with_what_is_known(registered: None) -> None:
    shown = CliRunner().invoke(app, ["models"])
    assert shown.exit_code == 0
    head, newest, oldest = (line.split() for line in shown.stdout.splitlines())
    assert head[:6] == ["model", "alias", "trainer", "dataset", "AUC", "decision"]
    assert newest == ["u/2", "champion", "own", "f" * 12, "0.7654", "release", "2024-11-20", "08:30"]
    assert oldest == ["u/1", "own", "f" * 12, "2024-11-20", "08:30"]


def test_versions_as_json_are_alone_on_stdout(registered: None) -> None:
    newest, oldest = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert set(newest) == set(VersionSummary.model_fields)
    assert (newest["model"], newest["auc"], newest["aliases"]) == ("u/2", 0.7654, ["champion"])
    assert oldest["auc"] is None


@pytest.mark.parametrize("model", ["u", "u/", "u/0", "u/x", "u/1/2"])
def test_what_is_no_version_is_a_wrong_call(model: str) -> None:
    assert CliRunner().invoke(app, ["models", "card", model]).exit_code == 2


@pytest.mark.parametrize("command", [["models"], ["models", "card", "u/1"]])
def test_without_mlflow_the_refusal_names_the_command_that_starts_it(command: list[str]) -> None:
    raised = CliRunner().invoke(app, command).exception
    assert isinstance(raised, ThroughlineError)
    assert "throughline up" in str(raised)
