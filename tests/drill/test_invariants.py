"""Each invariant of the design, broken once in a copy of the code: the test that holds it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from throughline.foundation.settings import PROJECT_ROOT

pytestmark = [pytest.mark.drill(minutes=6), pytest.mark.timeout(900)]

COPIED = ("assets", "deploy", "features", "platform", "serving", "tests", "training", "usecases")
UNIT = "tests/unit/platform"


@dataclass(frozen=True)
class Break:
    """A change of one line of a file, and the test that must then fail."""

    invariant: str
    file: str
    line: str
    broken: str
    test: str


BREAKS = [
    Break(
        "1 nothing reads latest silently", "features/macros/pinned.sql",
        "VERSION AS OF {{ version }}", "",
        "tests/graph/test_dbt_pins.py::test_every_read_of_raw_data_names_the_version_it_was_given",
    ),
    Break(
        "2 the same partition written twice is the same content", "platform/throughline/lakehouse/table.py",
        "{DAY} >= '{first.isoformat()}'", "{DAY} > '{first.isoformat()}'",
        f"{UNIT}/lakehouse/test_table.py::test_after_any_writes_each_day_holds_what_was_last_written_for_it",
    ),
    Break(
        "3 no feature value from after the prediction time", "platform/throughline/featurestore/asof.py",
        'strategy="backward"', 'strategy="nearest"',
        f"{UNIT}/featurestore/test_asof.py::test_the_join_gives_what_looking_at_every_row_gives",
    ),
    Break(
        "4 gates fail closed", "platform/throughline/evaluation/gate.py",
        'else "reject"', 'else "release"',
        f"{UNIT}/evaluation/test_gate.py::test_a_missing_evaluation_rejects",
    ),
    Break(
        "5 what is served is what was registered", "platform/throughline/models/served_model.py",
        "if digest != sha256:", "if False:",
        f"{UNIT}/models/test_served_model.py::test_one_changed_byte_is_refused",
    ),
    Break(
        "6 the healthy copy is kept until the new one is ready", "platform/throughline/rollout/local.py",
        "_put_back(server, folder, revisions.usecase, previous)", "pass",
        f"{UNIT}/rollout/test_local.py::test_with_no_server_nothing_is_deployed_and_the_disk_is_as_before",
    ),
    Break(
        "7 automation is bounded", "platform/throughline/monitoring/triggers.py",
        "    if done:", "    if False:",
        f"{UNIT}/monitoring/test_triggers.py::test_a_thousand_ticks_of_the_same_drift_start_one_retraining",
    ),
    Break(
        "8 monitoring that lacks data says so", "platform/throughline/monitoring/calibration.py",
        "if not log_complete:", "if False:",
        f"{UNIT}/monitoring/test_calibration.py::test_with_an_incomplete_log_it_cannot_say",
    ),
    Break(
        "9 secrets are written nowhere", "platform/throughline/services/declared.py",
        "exclude={*SECRETS, *without}", "exclude={*without}",
        f"{UNIT}/services/test_services.py::test_secrets_are_in_the_environment_of_supervisord_and_in_no_file",
    ),
    Break(
        "9 beyond loopback a token is demanded", "platform/throughline/foundation/settings.py",
        "if not is_loopback(self.bind) and self.token is None:", "if False:",
        f"{UNIT}/foundation/test_settings.py::test_beyond_loopback_a_token_is_demanded_and_an_empty_one_is_none",
    ),
    Break(
        "10 a model version rebuilds from its number alone", "training/loop.py",
        "torch.manual_seed(parameters.seed)", "torch.seed()",
        "tests/unit/training/test_loop.py::test_the_same_seed_gives_the_same_bytes_and_another_seed_others",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The code and its tests in another folder, so that nothing here is ever broken."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        shutil.copytree(PROJECT_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "target"))
    for name in ("pyproject.toml", "workspace.yaml", "requirements.lock"):
        shutil.copy2(PROJECT_ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("broken", BREAKS, ids=[one.invariant for one in BREAKS])
def test_the_named_test_fails_when_the_invariant_is_broken(copy: Path, broken: Break) -> None:
    path = copy / broken.file
    before = path.read_text()
    assert before.count(broken.line) == 1, f"{broken.file} has changed: name the line that holds this invariant today"
    try:
        path.write_text(before.replace(broken.line, broken.broken))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", broken.test]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy / "platform"), str(copy)])}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(before)
    # 1: tests ran and failed; with any other code the test was not found or not reached
    assert done.returncode == 1, done.stdout[-3000:]
    assert " failed" in done.stdout
