"""The thread through a real MLflow: version, run and dataset of a trace are those that were registered."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support import traced_home as home
from tests.support.traced_home import COMMIT, DIGEST, NAME, SHA
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lineage.impact import impact
from throughline.lineage.registered import MlflowRegistry
from throughline.lineage.trace import Tracer
from throughline.mlflow.tags import encode
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.usecase import get_usecase

pytestmark = [pytest.mark.e2e]


@pytest.fixture(scope="module")
def traced(home_with_mlflow: Settings) -> tuple[Settings, str, str]:
    """A home whose version 1 is registered, with its run, and a prediction of it: settings, run, prediction."""
    settings = home_with_mlflow
    _, ticks, registry = home.make_home(settings)
    dataset = registry.dataset(home.RUN)
    client = client_of(settings)
    with tracked_run(client, NAME, {"dagster_run_id": "d-1", "cause": "drift"}, {"C": 1.0}) as run_id:
        client.log_text(run_id, dataset.model_dump_json(), "training/dataset.json")
    client.create_registered_model(NAME)
    made_from = {"dataset_table": dataset.table, "commit": COMMIT, "code_fingerprint": "ef" * 32, "lock": "12" * 32}
    trained = {"sha256": SHA, "dataset_fingerprint": DIGEST, "trainer": "logistic", "parameters": {"C": 1.0}}
    client.create_model_version(NAME, source=f"runs:/{run_id}/model", run_id=run_id, tags=encode(made_from | trained))
    event = home.prediction(ticks.row(-1, named=True), 1, datetime.now(UTC))
    return settings, run_id, home.log(settings, [event])[0]


def test_a_thread_through_a_real_registry_is_complete(traced: tuple[Settings, str, str]) -> None:
    settings, run_id, prediction = traced
    found = Tracer(settings, get_usecase(NAME)).trace(prediction)
    assert found.gaps == []
    it = {step.kind: step for step in found.steps}
    assert (it["run"].id, it["run"].facts["status"], it["run"].facts["cause"]) == (run_id, "FINISHED", "drift")
    assert it["model_version"].facts["sha256"] == SHA
    assert it["model_version"].facts["parameters"] == {"C": 1.0}
    assert it["dataset"].facts["fingerprint"] == DIGEST
    assert it["code"].id == COMMIT, "a commit that is all digits stays a text"


def test_a_table_version_reached_the_registered_model_and_its_prediction(traced: tuple[Settings, str, str]) -> None:
    found = impact(traced[0], TableReference.parse(f"{NAME}/raw/flight_departures@0"))
    version = ModelReference(name=NAME, version=1)
    assert (found.models, found.predictions) == ([version], {version: 1})


def test_what_mlflow_does_not_have_is_one_line(traced: tuple[Settings, str, str]) -> None:
    registry = MlflowRegistry(traced[0])
    with pytest.raises(ThroughlineError, match=f"has no model_version {NAME}/9"):
        registry.version(ModelReference(NAME, 9))
    with pytest.raises(ThroughlineError, match="has no run"):
        registry.run("0" * 32)
