"""The whole thread, as a user has it: real services in a home of its own, through the command line.

One home serves all tests of this file, in their order: from raw flights to a live endpoint, its predictions, their
outcomes and whether they are a reason to retrain. `tests/drill/test_thread_quarter.py` runs the same on all the data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import polars as pl
import psutil
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.conftest import needs
from tests.support.thread import USECASE, ThreadHome, thread_home
from throughline import services
from throughline.featurestore import store
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, PROJECT_ROOT, Settings
from throughline.graph.client import LOCATION, REPOSITORY
from throughline.graph.plan import SUBMITTED_ROOMS
from throughline.lakehouse import spark
from throughline.lakehouse.table import pin, read
from throughline.mlflow.rest import model_versions
from throughline.records import FeatureStoreRecord
from throughline.records.store import load_record
from throughline.rollout.endpoint import example_request
from throughline.usecase.requests import row_keys

# the graph's own keys (tests/graph/test_map.py), without what people submit and what only sensors report
ASSETS = [
    line.split(" ")[0] for line in (PROJECT_ROOT / "tests" / "graph" / "asset_graph.txt").read_text().splitlines()
]
REPORTED = {"flight_delay/deployment/rollout"}
PIPELINE = {key for key in ASSETS if key.split("/")[1] not in SUBMITTED_ROOMS} - REPORTED

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # against hangs: beside others a run takes its time


@pytest.fixture(scope="module")
def data_from() -> date | None:
    """Six weeks are enough to train on and to hold two out."""
    return date(2013, 2, 15)


@pytest.fixture(scope="module")
def home(session_home: Path, free_port_base: int, data_from: date | None) -> ThreadHome:
    return thread_home(session_home / "thread", free_port_base, data_from)


@pytest.fixture(scope="module")
def settings(home: ThreadHome) -> Settings:
    return home.settings


@pytest.fixture(scope="module")
def first_run(home: ThreadHome) -> Iterator[dict[str, Any]]:
    """A fresh home brought to a live endpoint; everything is stopped at the end."""
    needs("java")
    try:
        done = home.cli("run", "--json")
        assert done.returncode == 0, done.stderr
        (usecase,) = json.loads(done.stdout)["usecases"]
        yield usecase
    finally:
        services.down(home.settings)


@pytest.fixture
def example(settings: Settings, first_run: dict[str, Any]) -> dict[str, Any]:
    return example_request(settings, USECASE, data_clock(settings, USECASE.clock_start(settings)).now())


def tensors(instance: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {"string": "BYTES", "timestamp": "BYTES", "integer": "INT64", "number": "FP64"}
    return [
        {"name": name, "shape": [1], "datatype": kinds[USECASE.request[name].type], "data": [value]}
        for name, value in instance.items()
    ]


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_run_takes_raw_flights_to_a_live_endpoint(first_run: dict[str, Any], data_from: date | None) -> None:
    assert set(first_run["materialised"]) == PIPELINE
    assert 0.72 <= first_run["auc"] < 0.80
    assert first_run["gate"] == "release"
    first_day = data_from or USECASE.replay.start
    assert first_run["days"] == [first_day.isoformat(), "2013-03-31"]
    prediction = first_run["prediction"]
    assert set(prediction) >= {"prediction_id", "model_name", "model_version", "score", "decision"}
    assert 0 <= prediction["score"] <= 1


def test_v1_v2_and_grpc_give_the_same_answer(home: ThreadHome, settings: Settings, example: dict[str, Any]) -> None:
    one = home.predict_v1(example).json()["predictions"][0]

    url = f"{settings.url('model_http')}/v2/models/flight_delay/infer"
    outputs = httpx.post(url, json={"inputs": tensors(example)}, timeout=30).raise_for_status().json()["outputs"]
    two = {output["name"]: output["data"][0] for output in outputs}

    request = ModelInferRequest(model_name="flight_delay")
    for tensor in tensors(example):
        sent = request.inputs.add(name=tensor["name"], shape=[1], datatype=tensor["datatype"])
        if tensor["datatype"] == "BYTES":
            sent.contents.bytes_contents.append(str(tensor["data"][0]).encode())
        else:
            sent.contents.int64_contents.append(tensor["data"][0])
    with grpc.insecure_channel(f"127.0.0.1:{settings.port('model_grpc')}") as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    three = {
        output.name: (
            output.contents.bytes_contents or output.contents.fp64_contents or output.contents.int64_contents
        )[0]
        for output in answer.outputs
    }

    assert one["score"] == two["score"] == three["score"]
    assert str(one["model_version"]) == str(two["model_version"]) == text(three["model_version"])
    assert one["decision"] == two["decision"] == text(three["decision"])
    assert len({one["prediction_id"], two["prediction_id"], text(three["prediction_id"])}) == 3


def test_a_prediction_is_in_delta_seconds_later_with_the_features_used(
    home: ThreadHome, settings: Settings, example: dict[str, Any]
) -> None:
    prediction = home.predict_v1(example).json()["predictions"][0]
    table = "flight_delay/monitoring/inference_log"
    deadline = time.monotonic() + 30
    found = pl.DataFrame()
    while found.is_empty():
        assert time.monotonic() < deadline, "the event did not arrive"
        time.sleep(0.5)
        if (settings.lakehouse / table).exists():
            found = read(settings, pin(settings, table)).filter(pl.col("id") == prediction["prediction_id"]).collect()
    (event,) = found.to_dicts()
    assert event["score"] == pytest.approx(prediction["score"])
    assert f"{event['model_name']}/{event['model_version']}" == "flight_delay/1"
    features = json.loads(event["features"])
    assert {"origin_delay_2h", "carrier_late_share_24h", "weather_temp", "departure_hour"} <= set(features)
    times = json.loads(event["feature_times"])
    assert set(times) >= {"origin_ticks", "carrier_ticks", "destination_ticks", "aircraft_ticks", "weather_ticks"}
    now = data_clock(settings, USECASE.clock_start(settings)).now()
    assert all(stamp is None or stamp <= now.isoformat().replace("+00:00", "Z") for stamp in times.values())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"origin": None}, "origin"),
        ({"flight": "eleven"}, "flight"),
        ({"scheduled_departure": "tomorrow"}, "scheduled_departure"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_request_is_refused_by_the_field_at_fault(
    home: ThreadHome, example: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    answer = home.predict_v1(example | change)
    assert 400 <= answer.status_code < 500
    assert field in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_a_missing_key_an_unknown_model_and_broken_json_are_client_errors(
    home: ThreadHome, example: dict[str, Any]
) -> None:
    without = {name: value for name, value in example.items() if name != "carrier"}
    answer = home.predict_v1(without)
    assert 400 <= answer.status_code < 500
    assert "carrier" in answer.json()["error"]
    base = home.settings.url("model_http")
    assert httpx.post(f"{base}/v1/models/nobody:predict", json={"instances": [example]}).status_code == 404
    broken = httpx.post(f"{base}/v1/models/flight_delay:predict", content=b'{"instances": [')
    assert 400 <= broken.status_code < 500


def test_the_load_test_of_the_live_endpoint_ends_and_loses_nothing(home: ThreadHome, first_run: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "loadtests", "--scenario", "steady", "--rate", "20", "--seconds", "3", "--json"]
    done = subprocess.run(
        command, env=home.environment, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    (steady,) = json.loads(done.stdout.splitlines()[-1])["scenarios"]
    assert steady["requests"] > 10
    assert steady["failed_share"] == 0
    assert steady["logged_share"] == 1


def train_logistic(home: ThreadHome, *chosen: str) -> subprocess.CompletedProcess[str]:
    return home.cli("train", "flight_delay", "--trainer", "logistic", "--set", "C=0.5", "--json", *chosen)


def test_a_training_is_submitted_with_a_few_values_and_not_done_twice(
    home: ThreadHome, first_run: dict[str, Any]
) -> None:
    done = train_logistic(home, "--as-of", "2013-03-29")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert trained["status"] == "SUCCESS"
    assert trained["model"] != first_run["model"]
    assert trained["trainer"] == "logistic"
    assert 0.6 < trained["auc"] < 0.8
    assert trained["log_loss"] < trained["constant_log_loss"]

    by_number = train_logistic(home, "--dataset", trained["fingerprint"][:16])
    assert json.loads(by_number.stdout)["model"] == trained["model"]  # the same request on the same rows
    listed = json.loads(home.cli("jobs", "--json").stdout)
    assert [job["model"] for job in listed[:2]] == [trained["model"]] * 2
    assert "reused" in home.cli("jobs", "logs", listed[0]["job"][:8]).stdout


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--trainer", "forest"], 1, "Trainer forest is unknown"),
        (["--trainer", "mlp", "--set", "layers=3"], 2, "Parameter layers is unknown"),
        (["--trainer", "logistic", "--as-of", "2013-02-15T12:00:00Z"], 1, "no row with a known label before"),
    ],
)
def test_an_impossible_training_is_one_line_and_registers_nothing(
    home: ThreadHome, first_run: dict[str, Any], options: list[str], code: int, problem: str
) -> None:
    refused_training(home, options, code, problem)


def refused_training(home: ThreadHome, options: list[str], code: int, problem: str) -> None:
    before = len(list(model_versions(home.settings, "flight_delay")))
    done = home.cli("train", "flight_delay", *options)
    assert done.returncode == code
    message = " ".join(done.stderr.replace("│", " ").split())
    assert problem in message
    assert "Traceback" not in message
    assert len(list(model_versions(home.settings, "flight_delay"))) == before


def test_killed_services_are_reported_and_the_next_run_recovers_and_recomputes_nothing(
    home: ThreadHome, settings: Settings, example: dict[str, Any], first_run: dict[str, Any]
) -> None:
    home.kill_service("model_http")
    predicted = home.cli("predict", "flight_delay", "--example")
    assert predicted.returncode == 1
    assert "model server" in predicted.stderr
    assert "Traceback" not in predicted.stderr
    home.kill_service("spark")
    with pytest.raises(ThroughlineError, match="No Spark Connect server answers"), spark.session(settings.spark_url):
        pass
    assert home.service_state("model-server") == home.service_state("spark") == "dead"

    started = time.monotonic()
    again = home.cli("run", "--json")
    assert again.returncode == 0, again.stderr
    (run,) = json.loads(again.stdout)["usecases"]
    assert run["materialised"] == []
    assert run["model"] == first_run["model"]  # what people train leaves the pipeline as it is
    assert time.monotonic() - started < 600  # a hang, not a speed claim
    assert home.predict_v1(example).status_code == 200
    assert home.service_state("spark") == "running"


@pytest.fixture(scope="module")
def replayed_day(home: ThreadHome, first_run: dict[str, Any]) -> dict[str, Any]:
    """The row of a replayed day, as `throughline advance --json` prints it."""
    done = home.cli("advance", "--days", "1", "--json")
    assert done.returncode == 0, done.stderr
    (day,) = json.loads(done.stdout)
    return day


def test_after_a_replayed_day_its_predictions_have_their_outcomes(
    settings: Settings, replayed_day: dict[str, Any]
) -> None:
    assert replayed_day["predictions"] > 700
    assert replayed_day["labelled"] > 500
    assert replayed_day["verdict"] == "cannot_say"  # a single day's outcomes are too few to judge by
    outcomes = read(settings, pin(settings, "flight_delay/monitoring/outcomes")).collect()
    judged = outcomes.filter(pl.col("state") == "labelled")
    assert judged["label"].mean() == pytest.approx(judged["score"].mean(), abs=0.25)


def test_the_drift_sensor_gives_its_reason_for_not_retraining(settings: Settings, replayed_day: dict[str, Any]) -> None:
    assert replayed_day["retraining"] is None
    selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "sensorName": "flight_delay_drift"}
    query = """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
        ... on Sensor { sensorState { ticks(limit: 20) { skipReason } } } } }"""
    question = {"query": query, "variables": {"selector": selector}}
    answer = httpx.post(f"{settings.url('dagster')}/graphql", json=question, timeout=30).raise_for_status().json()
    reasons = [tick["skipReason"] for tick in answer["data"]["sensorOrError"]["sensorState"]["ticks"]]
    assert f"cannot_say: {replayed_day['reason']}" in reasons


def test_served_features_equal_those_of_the_offline_store_at_the_same_instant(
    settings: Settings, replayed_day: dict[str, Any]
) -> None:
    log = read(settings, pin(settings, "flight_delay/monitoring/inference_log")).collect()
    spine = read(settings, pin(settings, "flight_delay/features/labelled_flights")).collect()
    spine = spine.with_columns(row_keys(USECASE, spine).alias("row_key"))
    served = log.join(spine.select("row_key", "prediction_time", *USECASE.request), on="row_key").filter(
        # the replay sends it within the hour that the prediction is due; by hand it may be sent earlier
        (pl.col("prediction_time") - pl.col("time")).is_between(timedelta(0), timedelta(hours=1), closed="left")
    )
    assert served.height > 700
    requests = served.select("row_key", "prediction_time", *USECASE.request)
    offline = store.historical_features(settings, USECASE, requests, "prediction_time")
    online = pl.DataFrame([json.loads(features) for features in served["features"]], infer_schema_length=None)
    names = [name for name in offline.columns if name not in requests.columns]
    record = load_record(settings, (USECASE.name, "features", "feature_store"), FeatureStoreRecord)
    features = {feature.name for view in record.views for feature in view.features}
    assert set(names) == features
    for name in names:
        assert online[name].cast(pl.Float64).to_list() == pytest.approx(offline[name].to_list(), nan_ok=True), name


def test_down_leaves_no_process_and_no_port_behind(
    home: ThreadHome, settings: Settings, first_run: dict[str, Any]
) -> None:
    assert home.cli("down").returncode == 0
    ports = {settings.port(name) for name in DEFAULT_PORTS}
    listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
    assert not ports & listening
    commands = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(settings.home) in str(command)] == []
