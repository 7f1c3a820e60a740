"""`throughline explain PREDICTION_ID`: from the logged features, by the version that answered, or one line."""

from __future__ import annotations

import json
import runpy
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from tests.support.events import rows
from throughline.cli.main import app
from throughline.evaluation import background
from throughline.evaluation.background import background_of, place, read, served_path
from throughline.evaluation.explain import explain
from throughline.events.schema import InferenceEvent
from throughline.events.table import LogTable
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.models.served_model import ServedModel
from throughline.records import ModelRecord
from throughline.registry import versions as models

pytestmark = pytest.mark.e2e

NAME = "flight_delay"
BUILD = runpy.run_path(str(PROJECT_ROOT / "tests" / "support" / "fake_store_server.py"))["model_bytes"]
NOW = datetime(2013, 4, 1, 13, tzinfo=UTC)
AGAINST = pl.DataFrame(
    {
        "departure_hour": [6.0, 9.0, 14.0, 21.0],
        "aircraft_flights": [1.0, None, 2.0, 5.0],
        "carrier": ["B6", "UA", None, "DL"],
    }
)
FEATURES = {"departure_hour": 23.0, "aircraft_flights": None, "carrier": "UA"}
ROW = pl.DataFrame(FEATURES, {"departure_hour": pl.Float64, "aircraft_flights": pl.Float64, "carrier": pl.String})


@pytest.fixture(scope="module")
def settings(home_with_mlflow: Settings) -> Settings:
    return home_with_mlflow


def register(settings: Settings, folder: Path, bias: float) -> ModelRecord:
    file = folder / "model.onnx"
    file.write_bytes(BUILD(bias))
    with tracked_run(client_of(settings), NAME, {}, {}) as run_id:
        return models.register(
            settings, name=NAME, run_id=run_id, file=file, dataset_fingerprint="f" * 16, trained_until=NOW,
            trainer="lightgbm", parameters={},
        )  # fmt: skip


@pytest.fixture(scope="module")
def versions(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> list[ModelRecord]:
    """Two with a background, and one without."""
    made = [register(settings, tmp_path_factory.mktemp("built"), bias) for bias in (0.0, -1.0, 2.0)]
    for record in made[:2]:
        background.log(settings, record, background_of(loaded(record), AGAINST))
    return made


def loaded(record: ModelRecord) -> ServedModel:
    return ServedModel.load(Path(record.uri) / models.MODEL_FILE, record.sha256)


def log(settings: Settings, record: ModelRecord, score: float | None = None) -> UUID:
    event = InferenceEvent(
        id=uuid4(), source="urn:test", subject=NAME, time=NOW, sequence=1, wall_time=NOW, model_name=NAME,
        model_version=record.version, revision="r", role="stable", row_key="k", request={}, features=FEATURES,
        feature_times={}, flags=[], score=float(loaded(record).score(ROW)[0]) if score is None else score,
        decision="late", latency_ms=1.0,
    )  # fmt: skip
    LogTable(settings, NAME).append(rows([event]))
    return event.id


@pytest.fixture
def call(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THROUGHLINE_HOME", str(settings.home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", str(settings.port_base))
    return lambda *arguments: CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_a_logged_prediction_is_explained_by_the_version_that_made_it(settings, versions, call) -> None:
    for record in versions[:2]:
        prediction_id = log(settings, record)
        explained = json.loads(call(prediction_id, "--json").stdout)
        assert list(explained) == [
            "prediction_id", "model_name", "model_version", "decision", "score", "base_value", "explanations",
        ]  # fmt: skip
        assert (explained["prediction_id"], explained["model_version"]) == (str(prediction_id), record.version)
        expected = explain(loaded(record), ROW, AGAINST)
        assert explained["base_value"] == pytest.approx(expected.base_value)
        adds = {one["feature"]: one["contribution"] for one in explained["explanations"]}
        assert adds == pytest.approx({one.feature: one.contribution for one in expected.explanations})
        assert explained["base_value"] + sum(adds.values()) == pytest.approx(explained["score"], abs=1e-9)
        assert {one["feature"]: one["value"] for one in explained["explanations"]} == FEATURES
        assert json.loads(call(prediction_id, "--json").stdout) == explained


def test_a_person_reads_the_features_that_matter_and_what_the_rest_adds(settings, versions, call) -> None:
    prediction_id = log(settings, versions[0])
    everything: Result = call(prediction_id)
    assert everything.exit_code == 0, everything.output
    assert all(
        name in everything.stdout for name in (*FEATURES, "missing", "UA", "23", f"{NAME}/{versions[0].version}")
    )
    first = call(prediction_id, "--top", 1)
    assert "departure_hour" in first.stdout
    assert "carrier" not in first.stdout
    assert "all others" in first.stdout
    explained = json.loads(call(prediction_id, "--top", 1, "--json").stdout)
    assert explained["base_value"] + explained["explanations"][0]["contribution"] + explained["rest"] == pytest.approx(
        explained["score"]
    )


def refusal(done: Result) -> str:
    assert done.exit_code == 1
    assert isinstance(done.exception, ThroughlineError)
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.mark.parametrize(
    ("prediction_id", "words"), [(str(UUID(int=5)), "is not logged"), ("nonsense", "is no prediction id")]
)
def test_an_unknown_prediction_is_one_line(settings, versions, call, prediction_id: str, words: str) -> None:
    log(settings, versions[0])
    assert words in refusal(call(prediction_id))


def test_a_version_without_a_background_is_named(settings, versions, call) -> None:
    assert "evaluate it again" in refusal(call(log(settings, versions[2])))


def test_what_the_model_would_not_have_said_is_not_explained(settings, versions, call) -> None:
    assert "nothing is explained" in refusal(call(log(settings, versions[0], score=0.123)))


def test_what_a_version_is_compared_with_is_placed_where_it_is_served(settings, versions, tmp_path) -> None:
    place(settings, versions[0], tmp_path)
    path = served_path(tmp_path, versions[0].sha256)
    assert read(path) == background_of(loaded(versions[0]), AGAINST)
    place(settings.model_copy(update={"port_base": 1024}), versions[0], tmp_path)  # there already: no registry needed


def test_a_version_is_served_without_explanations_rather_than_not_at_all(settings, versions, tmp_path) -> None:
    place(settings, versions[2], tmp_path)
    place(settings.model_copy(update={"port_base": 1024}), versions[1], tmp_path)
    assert list(tmp_path.rglob("*.json")) == []
