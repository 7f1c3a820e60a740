"""The options of `throughline train` are the fields of a training request."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from throughline.cli import main as cli
from throughline.cli import train
from throughline.experiment.request import SearchRequest, TrainingRequest
from throughline.foundation.errors import ThroughlineError
from throughline.graph.client import RunOutcome
from throughline.graph.jobs import Job

GIVEN = {
    "usecase": "flight_delay",
    "trainer": "mlp",
    "parameters": {"lr": 0.1, "activation": "gelu"},
    "as_of": "2013-03-15",
    "commit": "HEAD~1",
    "force": True,
}
OPTIONS = [
    *("flight_delay", "--trainer", "mlp", "--set", "lr=0.1", "--set", "activation=gelu"),
    *("--as-of", "2013-03-15", "--commit", "HEAD~1", "--force"),
]


@pytest.fixture
def submitted(monkeypatch) -> list[TrainingRequest]:
    found: list[TrainingRequest] = []

    def submit(request: TrainingRequest, settings: object) -> Job:
        found.append(request)
        return Job(graph=None, run_id="the-run")

    monkeypatch.setattr(train, "submit", submit)
    return found


def call(*options: str):
    return CliRunner().invoke(cli.app, ["train", *options, "--no-wait", "--json"])


def test_every_field_of_a_request_has_an_option_of_its_name() -> None:
    names = {parameter.name for parameter in cli.load("train").params}
    assert (TrainingRequest.model_fields.keys() | SearchRequest.model_fields.keys()) - {"trials"} <= names
    search = next(parameter for parameter in cli.load("train").params if parameter.name == "search")
    assert search.metavar == "TRIALS"


def test_options_become_a_request(submitted) -> None:
    shown = call(*OPTIONS)
    assert (shown.exit_code, json.loads(shown.stdout)) == (0, {"job": "the-run"})
    assert submitted == [TrainingRequest(**GIVEN)]


def test_options_of_a_search_become_its_part_of_the_request(submitted) -> None:
    call(
        "flight_delay", "--search", "7", "--sampler", "grid", "--pruner", "asha", "--parallel", "2", "--select-features"
    )
    (request,) = submitted
    assert request.search == SearchRequest(trials=7, sampler="grid", pruner="asha", parallel=2, select_features=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--as-of", "2013-03-15", "--dataset", "abc"], "give one of as_of, dataset and table"),
        (["--search", "3", "--sampler", "best"], "'tpe', 'random', 'grid' or 'cmaes'"),
        (["--set", "lr"], "no NAME=VALUE"),
    ],
)
def test_a_request_that_contradicts_itself_is_a_wrong_call(submitted, options, problem) -> None:
    shown = call("flight_delay", *options)
    assert shown.exit_code == 2
    assert problem in " ".join(shown.output.replace("│", "").split())
    assert submitted == []


def test_a_training_that_failed_is_one_line_with_its_cause() -> None:
    job = Job(graph=None, run_id="the-run")
    with pytest.raises(ThroughlineError, match=r"Training failed: no rows \(`throughline jobs logs the-run`\)"):
        job.succeeded(RunOutcome("the-run", "FAILURE", errors=["no rows", "and what follows"]))
