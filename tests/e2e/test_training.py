"""Training as it runs in production: horovodrun with two workers, an MLflow server, a table on disk."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from tests.support.training_home import write_dataset
from throughline.evaluation.evaluate import evaluate_candidate
from throughline.evaluation.gate import decide
from throughline.experiment.recipe import recipe_of
from throughline.experiment.train import ATTEMPTS, Run, train_and_register
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.launch import LaunchFailed
from throughline.launch.protocol import OnEvent
from throughline.mlflow.rest import model_versions
from throughline.mlflow.tracking import client_of, close_abandoned
from throughline.models.served_model import ServedModel
from throughline.records import DatasetRecord, ModelRecord
from throughline.registry import versions as models
from throughline.services.ports import take_ports
from throughline.usecase import Evaluation, UseCase, get_usecase
from throughline.views.cost import cost_of

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def settings(home_with_mlflow: Settings) -> Settings:
    return home_with_mlflow.model_copy(update={"training_epochs": 2})


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> DatasetRecord:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(settings, usecase, dataset):
    """(record, events with the metrics MLflow had when they came)."""
    seen = []

    def on_event(event: dict) -> None:
        (run,) = _runs(settings, usecase, "RUNNING")
        seen.append((event, len(client_of(settings).get_metric_history(run.info.run_id, "train_loss"))))

    record = train(settings, usecase, dataset, on_event)
    return record, seen


def train(
    settings: Settings,
    usecase: UseCase,
    dataset: DatasetRecord,
    on_event: OnEvent | None = None,
    force: bool = False,
    trainer: str = "mlp",
    **overrides: Any,
) -> ModelRecord:
    """The parameters declared for the trainer; mlp has two workers under horovodrun."""
    recipe = recipe_of(settings, usecase, trainer, overrides)
    assert (recipe.launcher, recipe.processes) == ("single", 1) if trainer == "logistic" else ("horovod", 2)
    return train_and_register(
        Run(settings, on_event, checkpoint_s=0), usecase, dataset, recipe, {"cause": "a test"}, force
    )


def _runs(settings, usecase, status: str) -> list:
    client = client_of(settings)
    experiment = client.get_experiment_by_name(usecase.name).experiment_id
    return client.search_runs([experiment], f"attributes.status = '{status}'")


def test_metrics_are_in_mlflow_while_the_training_runs(trained, settings):
    record, seen = trained
    epochs = [(event["epoch"], known) for event, known in seen if event["event"] == "epoch"]
    assert [number for number, _ in epochs] == [1, 2]
    assert any(event["event"] == "done" and known == 2 for event, known in seen)
    run = client_of(settings).get_run(record.run_id)
    assert run.info.status == "FINISHED"
    assert {"train_loss", "validation_loss", "samples_per_s"} <= set(run.data.metrics)
    assert run.data.params["processes"] == "2"
    assert run.data.tags["cause"] == "a test"


def test_a_training_costs_its_seconds_and_those_of_its_workers(trained, settings, usecase):
    record, _ = trained
    info = client_of(settings).get_run(record.run_id).info
    (cost,) = [one for one in cost_of(settings, usecase).versions if one.model == record.reference]
    assert cost.training_s == pytest.approx((info.end_time - info.start_time) / 1000)
    threads = recipe_of(settings, usecase, "mlp", {}).threads
    assert cost.training_core_s == pytest.approx(2 * threads * cost.training_s)
    assert cost.bytes == sum(path.stat().st_size for path in Path(record.uri).rglob("*") if path.is_file())


def test_the_registered_version_describes_itself(trained, settings, dataset, tmp_path):
    record, _ = trained
    assert models.get(settings, record.reference) == record
    assert record.dataset_fingerprint == dataset.fingerprint
    assert record.trained_until < dataset.holdout_from
    assert models.fetch(settings, record, tmp_path).read_bytes() == (Path(record.uri) / "model.onnx").read_bytes()


def test_the_same_seed_and_world_give_the_same_file_bit_by_bit(trained, settings, usecase, dataset):
    record, _ = trained
    again = train(settings, usecase, dataset, force=True)
    assert again.version == record.version + 1
    assert again.sha256 == record.sha256


def test_the_same_recipe_on_the_same_rows_is_not_trained_again(settings, usecase, dataset):
    record = train(settings, usecase, dataset, trainer="logistic")
    before = len(list(model_versions(settings, usecase.name)))
    events = []
    again = train(settings, usecase, dataset, events.append, trainer="logistic")
    assert again.sha256 == record.sha256
    assert [event["event"] for event in events] == ["reused"]
    assert events[0]["model"] == str(again.reference)
    assert len(list(model_versions(settings, usecase.name))) == before
    # other rows, other parameters: another recipe
    other = dataset.model_copy(update={"fingerprint": "0" * 64})
    assert train(settings, usecase, other, trainer="logistic").version == before + 1
    assert train(settings, usecase, dataset, trainer="logistic", seed=7).version == before + 2


def test_an_evaluation_of_the_registered_file_passes_or_fails_by_its_own_numbers(trained, settings, usecase, dataset):
    record, _ = trained
    with pytest.raises(ThroughlineError, match="which dataset flight_delay/training/dataset@0 does not have"):
        evaluate_candidate(settings, usecase, dataset, record)  # the declaration names other rows
    plain = usecase.model_copy(update={"evaluation": Evaluation(holdout="14d")})
    evaluation = evaluate_candidate(settings, plain, dataset, record)
    assert evaluation.candidate.log_loss < evaluation.constant.log_loss
    assert evaluation.candidate.auc > 0.7
    decision = decide(evaluation, record, usecase.gate, evaluation.evaluated_at, evaluation.champion_model)
    assert [rule.verdict for rule in decision.rules if rule.rule == "evaluation"] == ["pass"]


def test_a_worker_killed_half_way_costs_the_time_since_the_last_checkpoint(trained, settings, usecase, dataset):
    """The launch is started again from the checkpoint, and its model is bit by bit that of an undisturbed one."""
    events, killed = [], []

    def kill_one(event: dict) -> None:
        events.append(event)
        if event["event"] == "checkpoint" and not killed:
            killed.extend(workers_of(usecase.trainers["mlp"].module))
            killed[-1].kill()

    long = {"epochs": 4, "batch_size": 64}
    interrupted = train(settings, usecase, dataset, kill_one, **long)
    assert len(killed) == 2
    assert [event["attempt"] for event in events if event["event"] == "retry"] == [2]
    epochs = [event["epoch"] for event in events if event["event"] == "epoch"]
    assert epochs == sorted(epochs)  # it did not start from the beginning
    assert train(settings, usecase, dataset, force=True, **long).sha256 == interrupted.sha256
    assert not list((settings.home / "training" / "checkpoints").iterdir())


def test_a_worker_that_is_killed_in_every_attempt_is_one_error_a_failed_run_and_no_version(
    trained, settings, usecase, dataset
):
    """Two workers that wait to be killed and load no framework: what is tried again is the launch."""
    before = len(list(model_versions(settings, usecase.name)))
    module, killed = "tests.support.waiting_trainer", []
    waiting = usecase.trainers["mlp"].model_copy(update={"module": module, "parameters": {}})
    usecase = usecase.model_copy(update={"trainers": {**usecase.trainers, "mlp": waiting}})

    def kill_one(event: dict) -> None:
        if event["event"] == "start":
            killed.extend(workers_of(module))
            killed[-1].kill()

    with pytest.raises(LaunchFailed, match="SIGKILL") as failure:
        train(settings, usecase, dataset, kill_one)
    assert failure.value.reason == "lost_worker"
    assert len(killed) == 2 * ATTEMPTS
    assert not any(p.is_running() for p in killed)
    assert len(list(model_versions(settings, usecase.name))) == before
    assert not _runs(settings, usecase, "RUNNING")
    assert any("SIGKILL" in run.data.tags["throughline.error"] for run in _runs(settings, usecase, "FAILED"))
    assert not list((settings.home / "training" / "runs").iterdir())


def workers_of(module: str) -> list[psutil.Process]:
    found = [p for p in psutil.Process().children(recursive=True) if module in _command(p)]
    return [p for p in found if "guard" not in _command(p) and "horovodrun" not in _command(p)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_an_unknown_parameter_is_refused_before_anything_starts(settings, usecase, dataset):
    with pytest.raises(ThroughlineError, match=r"layers is unknown; known are seed, epochs"):
        train(settings, usecase, dataset, layers=3)


def test_a_version_registered_twice_from_one_run_is_one_version(trained, settings):
    record, _ = trained
    known = len(list(model_versions(settings, record.name)))
    again = models.register(
        settings,
        name=record.name,
        run_id=record.run_id,
        file=Path(record.uri) / "model.onnx",
        dataset_fingerprint=record.dataset_fingerprint,
        trained_until=record.trained_until,
        trainer=record.trainer,
        parameters=record.parameters,
    )
    assert again == record
    assert len(list(model_versions(settings, record.name))) == known


def test_there_is_no_champion_until_one_is_set(trained, settings):
    record, _ = trained
    assert models.alias(settings, "unknown") is None
    assert models.alias(settings, record.name) is None
    models.set_alias(settings, record.reference)
    assert models.alias(settings, record.name) == record.reference
    assert models.champion(settings, record.name) is None  # the history decides, and has no champion


def test_a_file_changed_in_the_registry_is_not_fetched(trained, settings, tmp_path):
    record, _ = trained
    stored = Path(record.uri) / "model.onnx"
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        with pytest.raises(ThroughlineError, match=r"is not what was signed \(changed: model.onnx\)"):
            models.fetch(settings, record, tmp_path)
    finally:
        stored.write_bytes(good)
    assert not list(tmp_path.iterdir())


def test_a_run_whose_process_is_gone_is_marked_failed_and_others_are_left(trained, settings, usecase):
    client = client_of(settings)
    experiment = client.get_experiment_by_name(usecase.name).experiment_id
    host = socket.gethostname()
    me = psutil.Process()
    alive, elsewhere = f"{host}/{me.pid}/{me.create_time():.0f}", f"another-machine/{me.pid}/1"
    gone, another_since = f"{host}/4194999/1", f"{host}/{me.pid}/1"
    runs = {
        owner: client.create_run(experiment, tags={"throughline.owner": owner}).info.run_id
        for owner in (alive, elsewhere, gone, another_since)
    }
    assert sorted(close_abandoned(client, experiment)) == sorted([runs[gone], runs[another_since]])
    assert {owner: client.get_run(run).info.status for owner, run in runs.items()} == {
        alive: "RUNNING",
        elsewhere: "RUNNING",
        gone: "FAILED",
        another_since: "FAILED",
    }
    for owner in (alive, elsewhere):
        client.set_terminated(runs[owner])


def test_standard_mlflow_loads_the_version_and_scores_the_same(trained, settings):
    import mlflow

    record, _ = trained
    mlflow.set_tracking_uri(settings.url("mlflow"))
    loaded = mlflow.pyfunc.load_model(f"models:/{record.name}/{record.version}")
    numeric = np.array([[10.0, 0.5, np.nan], [np.nan, -1.0, 1.0]], np.float32)
    categorical = np.array([["o1", "c5"], ["", "never seen"]], dtype=object)
    scores = loaded.predict({"numeric": numeric, "categorical": categorical})["score"]
    assert scores.shape == (2,)
    assert not [file for file in Path(record.uri).rglob("*") if file.suffix in {".pkl", ".pickle", ".pt", ".pth"}]
    frame = pl.DataFrame({"wind": [10.0, None], "queue": [0.5, -1.0], "gap": [None, 1.0]}).with_columns(
        origin=pl.Series(["o1", None]), carrier=pl.Series(["c5", "never seen"])
    )
    ours = ServedModel.load(Path(record.uri) / "model.onnx", record.sha256).score(frame)
    np.testing.assert_array_equal(scores, ours.astype(np.float32))


def test_mlflow_that_does_not_answer_is_named_at_once(usecase, dataset, tmp_path):
    other = load_settings(home=tmp_path, port_base=take_ports())
    begun = time.monotonic()
    with pytest.raises(ThroughlineError, match=r"MLflow does not answer.*throughline up"):
        train(other, usecase, dataset)
    assert time.monotonic() - begun < 5
