"""A version is rebuilt from its number alone: in a repository of its own, so that revisions can be made and changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.training_home import write_dataset
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.records import DatasetRecord

pytestmark = pytest.mark.e2e

# What a person does, in the repository's own code: the command line needs the whole graph for it.
SCRIPT = """
import json, sys
from throughline.experiment.job import Job, run_job, run_job_at
from throughline.experiment.recipe import recipe_of
from throughline.experiment.reproduce import reproduce
from throughline.experiment.train import Run
from throughline.records import DatasetRecord
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import load_settings
told = json.loads(sys.argv[1])
run = Run(load_settings(home=told["home"], port_base=told["port_base"]))
if told["do"] == "train":
    dataset = DatasetRecord.model_validate(told["dataset"])
    job = Job(usecase="flight_delay", dataset=dataset, trainer=told["trainer"], parameters=told["parameters"])
    done = run_job(run, job) if told["revision"] is None else run_job_at(run, job, told["revision"])
    print("RESULT", done.model.model_dump_json())
else:
    print("RESULT", reproduce(run, ModelReference("flight_delay", told["version"])).model_dump_json())
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
def do(repository: Path, home_with_mlflow: Settings) -> Callable[..., dict]:
    """Run the script in the repository; the result, or the one line that it ended with."""
    home = {"home": str(home_with_mlflow.home), "port_base": home_with_mlflow.port_base}
    paths = os.pathsep.join([str(repository / "platform"), str(repository)])

    def run(do: str, **told: object) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps({"do": do, **home, **told})],
            cwd=repository, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        )  # fmt: skip
        results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not results:
            return {"error": done.stderr.strip().splitlines()[-1]}
        return json.loads(results[0].removeprefix("RESULT "))

    return run


def train(do: Callable[..., dict], dataset: DatasetRecord, trainer: str, revision: str | None = None, **parameters):
    return do(
        "train",
        dataset=dataset.model_dump(mode="json"),
        trainer=trainer,
        parameters=parameters,
        revision=revision,
    )


def test_versions_of_different_trainers_are_rebuilt_bit_by_bit_from_their_numbers(do, dataset, repository):
    made = [
        train(do, dataset, "lightgbm"),
        train(do, dataset, "logistic", C=0.5),
        train(do, dataset, "mlp", epochs=2),  # two workers under horovodrun
        train(do, dataset, "ensemble", **{"mlp.epochs": 1}),
    ]
    # the code goes on meanwhile: a rebuilt version is of its own revision
    trainer = repository / "training" / "trainers" / "logistic.py"
    trainer.write_text(trainer.read_text() + "\nraise RuntimeError('this revision is broken')\n")
    commit(repository)
    for model in made:
        found = do("reproduce", version=model["version"])
        assert found.get("identical") is True, found
        assert found["digest"] == model["sha256"]
        assert found["lock"] == "same"
        losses = found["metrics"]["validation_log_loss"]
        assert losses["registered"] == losses["rebuilt"] is not None
    git(repository, "revert", "--no-edit", "HEAD")


def test_a_training_at_a_revision_runs_that_revisions_code_and_leaves_no_worktree(do, dataset, repository):
    old = git(repository, "rev-parse", "HEAD")
    trainer = repository / "training" / "trainers" / "logistic.py"
    trainer.write_text(trainer.read_text() + "\nraise RuntimeError('not this one')\n")
    commit(repository)
    model = train(do, dataset, "logistic", revision=old, C=0.25)
    assert model["trainer"] == "logistic", model
    assert do("reproduce", version=model["version"])["identical"] is True
    assert "unknown to git" in train(do, dataset, "logistic", revision="no-such-thing")["error"]
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    git(repository, "revert", "--no-edit", "HEAD")


def test_what_cannot_be_rebuilt_is_said_in_one_line(do, dataset, repository):
    (repository / "usecases" / "note.txt").write_text("not committed")
    model = train(do, dataset, "logistic", C=0.125)
    assert "was not committed" in do("reproduce", version=model["version"])["error"]
    (repository / "usecases" / "note.txt").unlink()

    sound = train(do, dataset, "logistic", C=2.0)
    assert do("reproduce", version=sound["version"])["identical"] is True
    import polars as pl

    rows = pl.read_delta(dataset.path)
    changed = rows.with_columns(wind=pl.col("wind") + 1)
    changed.write_delta(dataset.path, mode="overwrite")  # another version: the recorded one stands
    assert do("reproduce", version=sound["version"])["identical"] is True
    for file in Path(dataset.path).glob("*.parquet"):
        file.unlink()
    assert "cannot be read" in do("reproduce", version=sound["version"])["error"]
