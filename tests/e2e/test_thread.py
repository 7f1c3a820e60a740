"""The whole thread, as a user has it: real services in a home of its own, through the command line.

One home serves all tests of this file: raw flights to a live endpoint takes minutes. Each test leaves it running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

from throughline import services
from throughline.featurestore import store
from throughline.foundation.clock import data_clock
from throughline.foundation.settings import DEFAULT_PORTS, PROJECT_ROOT, Settings, load_settings
from throughline.graph.client import Graph, RunOutcome
from throughline.lakehouse.table import pin, read
from throughline.registry import versions as models
from throughline.rollout.endpoint import example_request
from throughline.usecase import get_usecase
from throughline.usecase.requests import row_keys

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # against hangs: beside others a run takes its time

USECASE = get_usecase("flight_delay")
FROM = date(2013, 2, 15)  # six weeks are enough to train on and to hold two out
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def settings(session_home: Path, free_port_base: int) -> Settings:
    return load_settings(home=session_home / "thread", port_base=free_port_base, data_from=FROM)


@pytest.fixture(scope="module")
def environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "THROUGHLINE_HOME": str(settings.home),
        "THROUGHLINE_PORT_BASE": str(settings.port_base),
        "THROUGHLINE_DATA_FROM": FROM.isoformat(),
    }


@pytest.fixture(scope="module")
def cli(environment: dict[str, str]) -> Cli:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("throughline")), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1700, check=False)

    return call


@pytest.fixture(scope="module")
def first_run(settings: Settings, cli: Cli) -> Iterator[dict[str, Any]]:
    """A fresh home brought to a live endpoint; everything is stopped at the end."""
    if not Path("/usr/bin/java").exists() and "JAVA_HOME" not in os.environ:
        pytest.skip("Java is not installed: Spark needs it")
    try:
        done = cli("run", "--json")
        assert done.returncode == 0, done.stderr
        (usecase,) = json.loads(done.stdout)["usecases"]
        yield usecase
    finally:
        services.down(settings)


@pytest.fixture
def example(settings: Settings, first_run: dict[str, Any]) -> dict[str, Any]:
    return example_request(settings, USECASE, data_clock(settings, USECASE.clock_start(settings)).now())


def v1(settings: Settings, instance: Any) -> httpx.Response:
    url = f"{settings.url('model_http')}/v1/models/flight_delay:predict"
    return httpx.post(url, json={"instances": [instance]}, timeout=30)


def tensors(instance: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {"string": "BYTES", "timestamp": "BYTES", "integer": "INT64", "number": "FP64"}
    return [
        {"name": name, "shape": [1], "datatype": kinds[USECASE.request[name].type], "data": [value]}
        for name, value in instance.items()
    ]


def kill_service(settings: Settings, name: str) -> None:
    """SIGKILL the process that listens on a service's port, as a machine in trouble would."""
    port = settings.port(name)
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait(10) if psutil.pid_exists(pid) else None


def state_of(settings: Settings, name: str) -> str:
    return next(one.state for one in services.status(settings) if one.name == name)


def test_run_takes_raw_flights_to_a_live_endpoint(settings: Settings, first_run: dict[str, Any]) -> None:
    assert len(set(first_run["materialised"])) == 26
    assert 0.72 <= first_run["auc"] < 0.80
    assert first_run["gate"] == "release"
    assert first_run["days"] == ["2013-02-15", "2013-03-31"]
    prediction = first_run["prediction"]
    assert set(prediction) >= {"prediction_id", "model_name", "model_version", "score", "decision"}
    assert 0 <= prediction["score"] <= 1


def test_a_second_run_recomputes_nothing(cli: Cli, first_run: dict[str, Any]) -> None:
    started = time.monotonic()
    done = cli("run", "--json")
    assert done.returncode == 0, done.stderr
    (usecase,) = json.loads(done.stdout)["usecases"]
    assert usecase["materialised"] == []
    assert usecase["model"] == first_run["model"]
    assert time.monotonic() - started < 120  # a hang, not a speed claim


def test_v1_v2_and_grpc_give_the_same_answer(settings: Settings, example: dict[str, Any]) -> None:
    one = v1(settings, example).json()["predictions"][0]

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
    assert str(one["model_version"]) == str(two["model_version"]) == _text(three["model_version"])
    assert one["decision"] == two["decision"] == _text(three["decision"])
    assert len({one["prediction_id"], two["prediction_id"], _text(three["prediction_id"])}) == 3


def _value(contents: Any) -> Any:
    return (contents.bytes_contents or contents.fp64_contents or contents.int64_contents)[0]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_a_prediction_is_in_delta_seconds_later_with_the_features_used(
    settings: Settings, example: dict[str, Any]
) -> None:
    prediction = v1(settings, example).json()["predictions"][0]
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
    settings: Settings, example: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    answer = v1(settings, example | change)
    assert 400 <= answer.status_code < 500
    assert field in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_a_missing_key_an_unknown_model_and_broken_json_are_client_errors(
    settings: Settings, example: dict[str, Any]
) -> None:
    without = {name: value for name, value in example.items() if name != "carrier"}
    answer = v1(settings, without)
    assert 400 <= answer.status_code < 500
    assert "carrier" in answer.json()["error"]
    base = settings.url("model_http")
    assert httpx.post(f"{base}/v1/models/nobody:predict", json={"instances": [example]}).status_code == 404
    broken = httpx.post(f"{base}/v1/models/flight_delay:predict", content=b'{"instances": [')
    assert 400 <= broken.status_code < 500


def test_the_load_test_of_the_live_endpoint_ends_and_loses_nothing(
    settings: Settings, environment: dict[str, str], first_run: dict[str, Any]
) -> None:
    command = [sys.executable, "-m", "loadtests", "--users", "2", "--seconds", "3", "--json"]
    done = subprocess.run(
        command, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["requests"] > 10
    assert result["failed_share"] == 0
    assert result["events_lost"] == 0


def test_a_training_is_submitted_with_a_few_values_and_leaves_the_pipeline_as_it_is(
    settings: Settings, cli: Cli, first_run: dict[str, Any]
) -> None:
    asked = ["train", "flight_delay", "--trainer", "logistic", "--as-of", "2013-03-29", "--set", "C=0.5", "--json"]
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "SUCCESS"
    assert told["model"] != first_run["model"]
    assert told["trainer"] == "logistic"
    assert 0.6 < told["auc"] < 0.8
    assert told["log_loss"] < told["constant_log_loss"]

    again = json.loads(cli(*asked).stdout)
    assert again["model"] == told["model"]  # the same recipe on the same rows
    by_number = ["train", "flight_delay", "--trainer", "logistic", "--set", "C=0.5", "--json", "--dataset"]
    assert json.loads(cli(*by_number, told["fingerprint"][:16]).stdout)["model"] == told["model"]

    listed = json.loads(cli("jobs", "--json").stdout)
    assert [job["model"] for job in listed[:3]] == [told["model"]] * 3
    logs = cli("jobs", "logs", listed[0]["job"][:8])
    assert "reused" in logs.stdout

    run = json.loads(cli("run", "--json").stdout)["usecases"][0]
    assert run["materialised"] == []
    assert run["model"] == first_run["model"]


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--trainer", "forest"], 1, "Trainer forest is unknown"),
        (["--trainer", "mlp", "--set", "layers=3"], 2, "Parameter layers is unknown"),
        (["--trainer", "mlp", "--set", "lr=-1"], 2, "Parameter learning_rate -1"),
        (["--as-of", "2012-06-01"], 1, "before the data"),
        (["--as-of", "2014-06-01"], 1, "has not come"),
        (["--trainer", "logistic", "--as-of", "2013-02-15T12:00:00Z"], 1, "no row with a known label before"),
        (["--dataset", "0123456789"], 1, "Dataset 0123456789 is not known"),
        (["--trainer", "mlp", "--set", "lr=1e30", "--set", "epochs=1"], 1, "training loss became"),
    ],
)
def test_a_training_that_cannot_be_is_one_line_and_registers_nothing(
    settings: Settings, cli: Cli, first_run: dict[str, Any], options: list[str], code: int, problem: str
) -> None:
    before = len(models.versions(settings, "flight_delay"))
    done = cli("train", "flight_delay", *options)
    assert done.returncode == code
    told = " ".join(done.stderr.replace("│", " ").split())
    assert problem in told
    assert "Traceback" not in told
    assert len(models.versions(settings, "flight_delay")) == before


def test_a_cancelled_training_leaves_no_worker(settings: Settings, cli: Cli, first_run: dict[str, Any]) -> None:
    def workers() -> list[psutil.Process]:
        commands = {p: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
        return [p for p, command in commands.items() if str(settings.home / "training") in command]

    asked = cli("train", "flight_delay", "--trainer", "mlp", "--set", "epochs=5000", "--no-wait", "--json")
    job = json.loads(asked.stdout)["job"]
    end = time.monotonic() + 300
    while "epoch:" not in logged(settings, job) and time.monotonic() < end:
        time.sleep(1)
    assert len(workers()) >= 2
    done = cli("jobs", "cancel", job[:8], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "CANCELED"
    assert workers() == []
    assert cli("jobs", "cancel", job[:8]).returncode == 1  # it has ended


def logged(settings: Settings, run_id: str) -> str:
    """What a run has told so far."""
    told: list[str] = []
    Graph(settings)._tell(run_id, None, RunOutcome(run_id, ""), lambda event: told.append(event.message))
    return "\n".join(told)


def test_a_killed_model_server_is_reported_and_the_next_run_recovers(
    settings: Settings, cli: Cli, example: dict[str, Any]
) -> None:
    kill_service(settings, "model_http")
    asked = cli("predict", "flight_delay", "--example")
    assert asked.returncode == 1
    assert "model server" in asked.stderr
    assert "Traceback" not in asked.stderr
    assert state_of(settings, "model-server") == "dead"
    again = cli("run", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["usecases"][0]["materialised"] == []
    assert v1(settings, example).status_code == 200


def test_a_killed_spark_server_is_one_clear_error_and_the_next_run_recovers(
    settings: Settings, cli: Cli, first_run: dict[str, Any]
) -> None:
    from throughline.lakehouse import spark

    kill_service(settings, "spark")
    with pytest.raises(Exception, match="No Spark Connect server answers") as refused, spark.session(settings):
        pass
    assert type(refused.value).__name__ == "ThroughlineError"
    assert state_of(settings, "spark") == "dead"
    assert cli("run").returncode == 0
    assert state_of(settings, "spark") == "running"


@pytest.fixture(scope="module")
def lived_day(cli: Cli, first_run: dict[str, Any]) -> dict[str, Any]:
    """A recorded day has passed."""
    done = cli("advance", "--days", "1", "--json")
    assert done.returncode == 0, done.stderr
    (day,) = json.loads(done.stdout)
    return day


def test_a_day_passes_and_its_predictions_meet_their_outcomes(settings: Settings, lived_day: dict[str, Any]) -> None:
    day = lived_day
    assert day["predictions"] > 700
    assert day["labelled"] > 500
    assert day["verdict"] == "cannot_say"  # a single day's outcomes are too few to judge by
    outcomes = read(settings, pin(settings, "flight_delay/monitoring/outcomes")).collect()
    judged = outcomes.filter(pl.col("state") == "labelled")
    assert judged["label"].mean() == pytest.approx(judged["score"].mean(), abs=0.25)


def test_what_was_served_is_what_the_offline_store_says_for_the_same_instant(
    settings: Settings, lived_day: dict[str, Any]
) -> None:
    log = read(settings, pin(settings, "flight_delay/monitoring/inference_log")).collect()
    spine = read(settings, pin(settings, "flight_delay/features/labelled_flights")).collect()
    spine = spine.with_columns(row_keys(USECASE, spine).alias("row_key"))
    served = log.join(spine.select("row_key", "prediction_time", *USECASE.request), on="row_key").filter(
        # the replay asks within the hour that the flight is due to be predicted; by hand one may ask earlier
        (pl.col("prediction_time") - pl.col("time")).is_between(timedelta(0), timedelta(hours=1), closed="left")
    )
    assert served.height > 700
    asked = served.select("row_key", "prediction_time", *USECASE.request)
    offline = store.historical(settings, USECASE, asked, "prediction_time")
    online = pl.DataFrame([json.loads(features) for features in served["features"]], infer_schema_length=None)
    names = [name for name in offline.columns if name not in asked.columns]
    assert len(names) == 45
    for name in names:
        assert online[name].cast(pl.Float64).to_list() == pytest.approx(offline[name].to_list(), nan_ok=True), name


def test_down_leaves_no_process_and_no_port_behind(settings: Settings, cli: Cli, first_run: dict[str, Any]) -> None:
    try:
        assert cli("down").returncode == 0
        ports = {settings.port(name) for name in DEFAULT_PORTS}
        listening = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == "LISTEN"}
        assert not ports & listening
        mine = [
            p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(settings.home) in str(p.info["cmdline"])
        ]
        assert mine == []
    finally:
        assert cli("up").returncode == 0
