"""A search as it runs in production: trials as runs in MLflow, a study that goes on, features that are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.training_home import write_dataset
from throughline.experiment import search as searching
from throughline.experiment import study
from throughline.experiment.recipe import recipe_of
from throughline.experiment.request import SearchRequest
from throughline.experiment.search import search
from throughline.experiment.space import space_of
from throughline.experiment.study import open_study
from throughline.experiment.train import Run
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.mlflow.tracking import client_of
from throughline.records import DatasetRecord
from throughline.usecase import UseCase, get_usecase

pytestmark = pytest.mark.e2e

RANDOM = SearchRequest(trials=3, sampler="random", pruner="none")


@pytest.fixture(scope="module")
def settings(home_with_mlflow: Settings) -> Settings:
    return home_with_mlflow


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetRecord:
    return write_dataset(tmp_path_factory.mktemp("data"), rows=3000)


def children(settings: Settings, usecase: UseCase, run_id: str) -> list:
    client = client_of(settings)
    experiment = client.get_experiment_by_name(usecase.name).experiment_id
    return client.search_runs([experiment], f"tags.mlflow.parentRunId = '{run_id}'", order_by=["attribute.start_time"])


def test_a_search_leaves_its_trials_and_a_plot_and_goes_on_where_it_was_left(settings, usecase, dataset, tmp_path):
    events = []
    run = Run(settings, events.append)
    found = search(run, usecase, ["logistic"], dataset, RANDOM)
    trials = children(settings, usecase, found.run_id)
    assert [trial.info.status for trial in trials] == ["FINISHED"] * 3
    # the first is what is declared, the others are not
    declared = str(recipe_of(settings, usecase, "logistic").parameters["C"])
    assert [trial.data.params["C"] == declared for trial in trials] == [True, False, False]
    losses = [trial.data.metrics["validation_log_loss"] for trial in trials]
    best = trials[losses.index(min(losses))]
    assert str(found.recipe.parameters["C"]) == best.data.params["C"]
    client = client_of(settings)
    kept = {Path(file.path).name for file in client.list_artifacts(found.run_id, "search")}
    assert kept == {"search.html", "trials.csv"}
    page = Path(client.download_artifacts(found.run_id, "search/search.html", str(tmp_path))).read_text()
    assert "Optimization History" in page

    # a crash leaves a trial without an end; more trials go on with the same study in the same run
    name = client.get_run(found.run_id).data.tags["throughline.search"]
    open_study(run, name, space_of(usecase, ["logistic"]), RANDOM, seed=1).ask()
    again = search(run, usecase, ["logistic"], dataset, RANDOM.model_copy(update={"trials": 5}))
    assert again.run_id == found.run_id
    assert len(children(settings, usecase, found.run_id)) == 5
    assert client.get_run(found.run_id).info.status == "FINISHED"
    assert any(event.get("note") == "resumed after 3 trials" for event in events)


def test_a_search_never_sees_the_weeks_of_the_evaluation(settings, usecase, dataset, monkeypatch):
    seen = []

    def fit(run, rows, recipe, output, **options):
        seen.append((rows.holdout_from, options["validation_from"]))
        raise ThroughlineError("enough")

    monkeypatch.setattr(searching, "fit", fit)
    with pytest.raises(ThroughlineError, match="enough"):
        search(Run(settings), usecase, ["logistic"], dataset, RANDOM, {"seed": 5})
    assert seen == [(dataset.holdout_from, dataset.holdout_from - usecase.evaluation.holdout)]


def test_trials_that_do_worse_than_others_are_ended_and_none_that_ends_well_is_one_error(
    settings, usecase, dataset, monkeypatch
):
    import optuna

    monkeypatch.setattr(study, "_pruner", lambda name: optuna.pruners.ThresholdPruner(upper=0.0))
    small = usecase.model_copy(
        update={
            "trainers": {
                **usecase.trainers,
                "mlp": usecase.trainers["mlp"].model_copy(update={"launcher": "single", "processes": 1}),
            }
        }
    )
    events = []
    request = SearchRequest(trials=2, sampler="random")
    with pytest.raises(ThroughlineError, match="None of 2 trials"):
        search(Run(settings, events.append), small, ["mlp"], dataset, request, {"epochs": 40, "seed": 9})
    assert [event["state"] for event in events if event["event"] == "trial"] == ["pruned", "pruned"]


def test_several_trainers_compete_with_several_trials_at_once(settings, usecase, dataset):
    names = ["logistic", "lightgbm"]
    request = SearchRequest(trials=4, sampler="tpe", pruner="median", parallel=2)
    found = search(Run(settings), usecase, names, dataset, request)
    trained = {trial.data.params["trainer"] for trial in children(settings, usecase, found.run_id)}
    assert trained == {"logistic", "lightgbm"}  # at least what is declared of each
    assert found.recipe.trainer in trained


def test_features_that_later_weeks_do_not_need_are_left_out(settings, usecase, dataset):
    events = []
    request = RANDOM.model_copy(update={"trials": 1, "select_features": True})
    found = search(Run(settings, events.append), usecase, ["lightgbm"], dataset, request)
    (selection,) = [event for event in events if event["event"] == "selection"]
    rises = client_of(settings).download_artifacts(found.run_id, "search/importances.json")
    assert next(iter(json.loads(Path(rises).read_text()))) == "queue"  # what the rows were made with
    if selection["taken"]:
        assert found.dataset.fingerprint != dataset.fingerprint
        assert len(found.dataset.numeric) + len(found.dataset.categorical) == selection["kept"] < selection["of"]
    else:
        assert found.dataset == dataset

    # what was found once holds for the study's later trials
    again = search(Run(settings, events.append), usecase, ["lightgbm"], dataset, request)
    assert again == found
    assert [event["event"] for event in events].count("selection") == 1


def test_what_is_set_is_in_every_trial_and_in_what_is_found(settings, usecase, dataset):
    fixed = {"num_leaves": 5, "seed": 3}
    assert "num_leaves" in usecase.trainers["lightgbm"].search
    found = search(Run(settings), usecase, ["lightgbm"], dataset, RANDOM, fixed)
    trials = children(settings, usecase, found.run_id)
    assert [(trial.data.params["num_leaves"], trial.data.params["seed"]) for trial in trials] == [("5", "3")] * 3
    assert {name: found.recipe.parameters[name] for name in fixed} == fixed
