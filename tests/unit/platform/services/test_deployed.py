"""A revision that is deployed and not served is named with what mends it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from throughline.foundation.settings import Settings, load_settings
from throughline.records import Revision, RevisionSet
from throughline.rollout.revision import FILE, write_revisions
from throughline.services import load_deployed, not_served

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def revision(version: int, **values: object) -> Revision:
    made = {
        "revision": f"v{version}-{version:012x}",
        "usecase": "late",
        "name": "late",
        "version": version,
        "sha256": f"{version:064x}",
        "file": f"{version}/model.onnx",
        "deployed_at": NOW,
    }
    return Revision.model_validate(made | values)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = load_settings(home=tmp_path, port_base=64900)
    canary = [revision(1, weight=0.9), revision(2, role="canary", weight=0.1)]
    write_revisions(settings.serving_home / "late", RevisionSet(usecase="late", revisions=tuple(canary)))
    return settings


def served(*versions: int, usecase: str = "late") -> list[dict]:
    return [{"usecase": usecase, "revision": revision(version).revision} for version in versions]


def test_when_all_that_was_deployed_is_served_there_is_no_trouble(settings: Settings) -> None:
    assert not_served(settings, served(1, 2)) == {}
    assert not_served(load_settings(home=settings.home / "new"), []) == {}


@pytest.mark.parametrize(
    ("serves", "what"),
    [
        (
            served(),
            "revision v1-000000000001 (late/1, stable), v2-000000000002 (late/2, canary) of late is deployed, not",
        ),
        (
            served(1),
            "revision v2-000000000002 (late/2, canary) of late is deployed, not served, v1-000000000001 is",
        ),
        (
            served(1, 2, usecase="other"),
            "revision v1-000000000001 (late/1, stable), v2-000000000002 (late/2, canary) of",
        ),
    ],
)
def test_what_is_deployed_and_not_served_is_named(settings: Settings, serves: list[dict], what: str) -> None:
    trouble = not_served(settings, serves)["late"]
    assert trouble.what.startswith(what)
    assert "model-server.log" in trouble.what
    assert (trouble.since, trouble.command) == (None, "throughline up")
    refusals = {"late": {"why": "refused: its file was changed.", "since": "2026-01-01T00:00:00+00:00"}}
    trouble = not_served(settings, serves, refusals)["late"]
    assert trouble.what.startswith(what)
    assert trouble.what.endswith("refused: its file was changed")
    assert (trouble.since, trouble.command) == ("2026-01-01T00:00:00+00:00", "throughline run")
    unloaded = {"late": {"why": "unloaded by a request", "since": "2026-01-01T00:00:00+00:00"}}
    assert not_served(settings, serves, unloaded)["late"].command == "throughline up"


def test_a_file_of_revisions_that_cannot_be_read_is_a_trouble(settings: Settings) -> None:
    (settings.serving_home / "late" / FILE).write_text("{half")
    trouble = not_served(settings, served(1))["late"]
    assert (FILE in trouble.what, trouble.command) == (True, "throughline run")


def test_a_server_that_does_not_load_it_is_a_trouble_with_the_reason(settings: Settings) -> None:
    trouble = load_deployed(settings, served(1))["late"]  # nobody listens there
    assert "refused" in trouble.what
    assert trouble.command == "throughline run"
