"""A version is rebuilt from its number alone: in a repository of its own, whose commits a test can make and change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.support.training_home import write_dataset
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.records import DatasetRecord

pytestmark = pytest.mark.e2e

# One process for all requests of the test, with the repository's own code: importing it takes seconds.
SCRIPT = """
import json, sys
from throughline.experiment.reproduce import reproduce
from throughline.experiment.request import TrainingRequest
from throughline.experiment.submitted import carry_out
from throughline.experiment.train import Run
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import load_settings
from throughline.records import DatasetRecord
from throughline.usecase import get_usecase
run = Run(load_settings(home=sys.argv[1], port_base=int(sys.argv[2])))
for line in sys.stdin:
    given = json.loads(line)
    try:
        if given["do"] == "train":
            request = TrainingRequest.model_validate(given["request"])
            dataset = DatasetRecord.model_validate(given["dataset"])
            done = carry_out(run, get_usecase(request.usecase), request, dataset, {})
        else:
            done = reproduce(run, ModelReference("flight_delay", given["version"]))
        print("RESULT", done.model_dump_json(), flush=True)
    except ThroughlineError as error:
        print("RESULT", json.dumps({"error": str(error)}), flush=True)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """The project's files as one commit of a fresh repository."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("platform", "training", "usecases", "features", "requirements.lock", ".gitignore"):
        place = PROJECT_ROOT / name
        command = ["cp", "-r", str(place), str(folder / name)]
        subprocess.run(command, check=True)
    git(folder, "init", "-q")
    commit(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "as it stands")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetRecord:
    return write_dataset(tmp_path_factory.mktemp("data"), rows=3000)


@pytest.fixture(scope="module")
def do(repository: Path, home_with_mlflow: Settings, tmp_path_factory) -> Iterator[Callable[..., dict]]:
    """Have the script do something; the result, or the one line of its failure under `error`."""
    paths = os.pathsep.join([str(repository / "platform"), str(repository)])
    log = tmp_path_factory.mktemp("log") / "script.log"
    with log.open("w") as errors, subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(home_with_mlflow.home), str(home_with_mlflow.port_base)],
        cwd=repository, env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
    ) as process:  # fmt: skip

        def send(do: str, **values: object) -> dict:
            process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("RESULT "):
                    return json.loads(line.removeprefix("RESULT "))
            pytest.fail(f"the script ended: {log.read_text()[-2000:]}")

        yield send
        process.stdin.close()


def train(do: Callable[..., dict], dataset: DatasetRecord, trainer: str, commit: str | None = None, **parameters):
    request = {"usecase": "flight_delay", "trainer": trainer, "parameters": parameters, "commit": commit}
    return do("train", dataset=dataset.model_dump(mode="json"), request=request)


def assert_rebuilt_after_the_code_changed(do: Callable[..., dict], repository: Path, models: list[dict]) -> None:
    """A version is rebuilt with the code of its own commit, whatever came later."""
    trainer = repository / "training" / "trainers" / "logistic.py"
    trainer.write_text(trainer.read_text() + "\nraise RuntimeError('this commit is broken')\n")
    commit(repository)
    for model in models:
        found = do("reproduce", version=model["version"])
        assert found.get("identical") is True, found
        assert found["digest"] == model["sha256"]
        assert found["lock"] == "same"
        losses = found["metrics"]["validation_log_loss"]
        assert losses["registered"] == losses["rebuilt"] is not None
    git(repository, "revert", "--no-edit", "HEAD")


def test_versions_of_different_trainers_are_rebuilt_bit_by_bit_from_their_numbers(do, dataset, repository):
    made = [
        train(do, dataset, "logistic", C=0.5),
        train(
            do, dataset, "ensemble", **{"mlp.epochs": 1, "lightgbm.n_estimators": 20}
        ),  # two workers under horovodrun
    ]
    assert_rebuilt_after_the_code_changed(do, repository, made)


@pytest.mark.drill
def test_versions_of_every_trainer_are_rebuilt_bit_by_bit_from_their_numbers(do, dataset, repository):
    made = [
        train(do, dataset, "lightgbm"),
        train(do, dataset, "logistic", C=0.5),
        train(do, dataset, "mlp", epochs=2),  # two workers under horovodrun
        train(do, dataset, "ensemble", **{"mlp.epochs": 1}),
    ]
    assert_rebuilt_after_the_code_changed(do, repository, made)


def test_a_training_at_a_commit_runs_that_commits_code_and_leaves_no_worktree(do, dataset, repository):
    old = git(repository, "rev-parse", "HEAD")
    trainer = repository / "training" / "trainers" / "logistic.py"
    trainer.write_text(trainer.read_text() + "\nraise RuntimeError('not this one')\n")
    commit(repository)
    model = train(do, dataset, "logistic", commit=old, C=0.25)
    assert model["trainer"] == "logistic", model
    assert do("reproduce", version=model["version"])["identical"] is True
    assert "unknown to git" in train(do, dataset, "logistic", commit="no-such-thing")["error"]
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    git(repository, "revert", "--no-edit", "HEAD")


def test_a_version_that_cannot_be_rebuilt_is_refused_in_one_line(do, dataset, repository):
    (repository / "usecases" / "note.txt").write_text("not committed")
    model = train(do, dataset, "logistic", C=0.125)
    assert "was not committed" in do("reproduce", version=model["version"])["error"]
    (repository / "usecases" / "note.txt").unlink()

    sound = train(do, dataset, "logistic", C=2.0)
    assert do("reproduce", version=sound["version"])["identical"] is True
    rows = pl.read_delta(dataset.path)
    changed = rows.with_columns(wind=pl.col("wind") + 1)
    changed.write_delta(dataset.path, mode="overwrite")  # another version: the recorded one stands
    assert do("reproduce", version=sound["version"])["identical"] is True
    for file in Path(dataset.path).glob("*.parquet"):
        file.unlink()
    assert "cannot be read" in do("reproduce", version=sound["version"])["error"]
