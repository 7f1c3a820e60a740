"""The model server and the collector as processes: one answer in three protocols, 4xx for bad input, no event lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import polars as pl
import psutil
import pytest
from kserve import InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.serving_home import make_home
from tests.support import servers
from tests.support.sealed import release_of, seal_model
from throughline.events.client import drain
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.registry import decisions, history
from throughline.rollout.admission import require_release
from throughline.rollout.local import LocalTarget
from throughline.rollout.promotion import serve
from throughline.services.ports import take_ports
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance

pytestmark = pytest.mark.e2e

NAME = "flight_delay"
SERVER = PROJECT_ROOT / "tests" / "support" / "fake_store_server.py"
DATATYPES = {"string": "BYTES", "timestamp": "BYTES", "integer": "INT64", "number": "FP64"}


@dataclass
class Place:
    """A home with its two processes."""

    settings: Settings
    processes: dict[str, subprocess.Popen[bytes]]

    def start(self, name: str, command: list[str], address: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)]),
            "THROUGHLINE_HOME": str(self.settings.home),
            "THROUGHLINE_PORT_BASE": str(self.settings.port_base),
            "THROUGHLINE_BIND": self.settings.bind,
            "THROUGHLINE_MODEL_WORKERS": str(self.settings.model_workers),
        }
        if self.settings.token:
            environment["THROUGHLINE_TOKEN"] = self.settings.token.get_secret_value()
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        log = self.settings.logs / f"{name}.log"
        with log.open("ab") as out:
            self.processes[name] = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=PROJECT_ROOT)
        process, port = self.processes[name], urlsplit(address).port
        servers.wait_until_ready(process, port, lambda: servers.get_ok(address), log)

    def start_server(self, *arguments: str) -> None:
        """Python's arguments; unless given, the server whose features are a double's."""
        command = [sys.executable, *(arguments or [str(SERVER)])]
        self.start("model-server", command, f"{self.url}/v2/health/ready")

    def start_collector(self, *arguments: str) -> None:
        command = [sys.executable, *arguments, "-m", "throughline.events.collector"]
        self.start("collector", command, f"{self.settings.url('collector')}/health")

    def end(self, name: str, how: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(timeout=30)

    @property
    def url(self) -> str:
        return self.settings.url("model_http")

    def log_text(self, name: str) -> str:
        return (self.settings.logs / f"{name}.log").read_text()

    def table(self) -> pl.DataFrame:
        return pl.read_delta(str(self.settings.table_path(NAME, "monitoring", "inference_log")))


@contextlib.contextmanager
def place(home: Path, **settings: Any) -> Iterator[Place]:
    home.mkdir(exist_ok=True)
    made = Place(Settings(home=home, port_base=take_ports(), **settings), {})
    try:
        yield made
    finally:
        for name in list(made.processes):
            with contextlib.suppress(ProcessLookupError):
                made.end(name)


@pytest.fixture(scope="module")
def doubles() -> dict[str, Any]:
    import runpy

    return runpy.run_path(str(SERVER))


@pytest.fixture(scope="module")
def served(tmp_path_factory, doubles) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("home")) as made:
        doubles["put_revision"](made.settings, version=1)
        made.start_collector()
        made.start_server()
        yield made


@pytest.fixture(scope="module")
def usecase():
    return get_usecase(NAME)


@pytest.fixture
def instance(usecase) -> dict[str, Any]:
    return example_instance(usecase)


# The same request in the three protocols: each returns (accepted, answer or error text).
Call = Callable[[Place, list[dict[str, Any]]], tuple[bool, Any]]


def call_v1(at: Place, instances: list[dict[str, Any]], model: str = NAME) -> tuple[bool, Any]:
    answer = httpx.post(f"{at.url}/v1/models/{model}:predict", json={"instances": instances})
    return rest_result(answer, lambda body: body["predictions"])


def call_v2(at: Place, instances: list[dict[str, Any]], model: str = NAME) -> tuple[bool, Any]:
    answer = httpx.post(f"{at.url}/v2/models/{model}/infer", json={"inputs": tensors(instances)})

    def rows(body: dict[str, Any]) -> list[dict[str, Any]]:
        columns = {output["name"]: output["data"] for output in body["outputs"]}
        columns["flags"] = [json.loads(text) for text in columns["flags"]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return rest_result(answer, rows)


def call_grpc(at: Place, instances: list[dict[str, Any]], model: str = NAME) -> tuple[bool, Any]:
    return grpc_infer(at, grpc_request(tensors(instances), model))


def grpc_request(made: list[dict[str, Any]], model: str = NAME) -> pb.ModelInferRequest:
    inputs = []
    for tensor in made:
        field, values = "bytes_contents", [v if isinstance(v, bytes) else str(v).encode() for v in tensor["data"]]
        if tensor["datatype"] == "INT64" and all(isinstance(v, int) for v in tensor["data"]):
            field, values = "int64_contents", tensor["data"]
        inputs.append(
            pb.ModelInferRequest.InferInputTensor(
                name=tensor["name"],
                datatype=tensor["datatype"] if field != "bytes_contents" else "BYTES",
                shape=tensor["shape"],
                contents=pb.InferTensorContents(**{field: values}),
            )
        )
    return pb.ModelInferRequest(model_name=model, inputs=inputs)


def grpc_infer(at: Place, request: pb.ModelInferRequest, **call: Any) -> tuple[bool, Any]:
    refused: Any = None
    with grpc.insecure_channel(f"127.0.0.1:{at.settings.port('model_grpc')}") as channel:
        try:
            answer = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10, **call)
        except grpc.RpcError as error:
            refused = error
    if refused is not None:
        good_refusals = (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNAUTHENTICATED,
        )
        assert refused.code() in good_refusals, refused
        return False, refused.details()
    columns: dict[str, list[Any]] = {}
    for output in answer.outputs:
        contents = output.contents
        columns[output.name] = (
            [v.decode() for v in contents.bytes_contents]
            or list(contents.int64_contents)
            or list(contents.fp64_contents)
        )
    if "flags" in columns:
        columns["flags"] = [json.loads(text) for text in columns["flags"]]
    return True, [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def rest_result(answer: httpx.Response, good: Callable[[Any], Any]) -> tuple[bool, Any]:
    body = answer.json()
    if answer.is_success:
        return True, good(body)
    assert 400 <= answer.status_code < 500, (answer.status_code, body)
    assert list(body) == ["error"]
    assert "Traceback" not in body["error"]
    assert "\n" not in body["error"]
    return False, body["error"]


def tensors(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One tensor per key of the first instance; the datatype follows the declaration, BYTES for unknown fields."""
    declared = get_usecase(NAME).request
    return [
        {
            "name": name,
            "shape": [len(instances)],
            "datatype": DATATYPES[declared[name].type] if name in declared else "BYTES",
            "data": ["" if row[name] is None else row[name] for row in instances],
        }
        for name in instances[0]
    ]


PROTOCOLS = pytest.mark.parametrize("call", [call_v1, call_v2, call_grpc])


def without(instance: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in instance.items() if name not in names}


def flush(at: Place) -> dict[str, Any]:
    """Wait until the server's outbox is empty, then write; the collector's counts."""
    deadline = time.monotonic() + 30
    while "throughline_events_waiting 0.0" not in httpx.get(f"{at.url}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    httpx.post(f"{at.settings.url('collector')}/flush", timeout=30).raise_for_status()
    return httpx.get(f"{at.settings.url('collector')}/status").json()


def test_three_protocols_give_one_answer_and_each_is_logged_with_its_features(served, instance):
    rows = [instance, instance | {"tailnum": None, "carrier": "ZZ"}]
    answers = []
    for call in (call_v1, call_v2, call_grpc):
        accepted, answer = call(served, rows)
        assert accepted, answer
        assert [set(each) for each in answer] == [
            {"prediction_id", "model_name", "model_version", "revision", "score", "decision", "flags"}
        ] * 2
        answers.append(answer)
    for answer in answers[1:]:
        assert [without(each, "prediction_id") for each in answer] == [
            without(each, "prediction_id") for each in answers[0]
        ]
    assert answers[0][0]["model_version"] == 1
    assert answers[0][0]["decision"] == ("late" if answers[0][0]["score"] >= 0.25 else "on_time")
    ids = [each["prediction_id"] for answer in answers for each in answer]
    assert len(set(ids)) == 6

    assert flush(served)["lost"] == 0
    log = {row["id"]: row for row in served.table().to_dicts()}
    known, strange = log[answers[0][0]["prediction_id"]], log[answers[0][1]["prediction_id"]]
    assert json.loads(known["features"]) == {"departure_hour": 9.0, "aircraft_flights": 3.0, "carrier": "B6"}
    assert json.loads(known["feature_times"])["aircraft_day"] == "2013-03-31T12:00:00Z"
    assert known["row_key"] == "2013-04-01T13:00:00Z|B6|1018|JFK"
    assert (known["flags"], known["role"], known["score"]) == ([], "stable", answers[0][0]["score"])
    assert known["time"] == datetime(2013, 4, 1, 4, tzinfo=UTC)
    assert abs((known["wall_time"] - datetime.now(UTC)).total_seconds()) < 300
    assert strange["flags"] == ["unknown_entity:aircraft", "outside_domain:carrier"]
    assert json.loads(strange["request"])["tailnum"] is None


@PROTOCOLS
@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda i: without(i, "origin"), "origin"),
        (lambda i: without(i, "tailnum"), "tailnum"),
        (lambda i: i | {"flight": "10x18"}, "flight"),
        (lambda i: i | {"scheduled_departure": "noon"}, "scheduled_departure"),
        (lambda i: i | {"scheduled_departure": "2013-04-01T09:00:00"}, "scheduled_departure"),
        (lambda i: i | {"origin": ""}, "origin"),
        (lambda i: i | {"tail_num": "N1"}, "tail_num"),
    ],
)
def test_a_bad_field_is_named_in_every_protocol(served, instance, call, change, field):
    accepted, error = call(served, [change(instance)])
    assert not accepted
    assert field in error


@PROTOCOLS
def test_too_many_instances_and_unknown_models_are_refused(served, instance, call):
    accepted, error = call(served, [instance] * 1001)
    assert not accepted
    assert "1000" in error
    accepted, error = call(served, [instance], model="no_such_model")
    assert not accepted
    assert "no_such_model" in error


def test_hostile_bodies_get_a_4xx_with_one_line(served, instance):
    v1, v2 = f"{served.url}/v1/models/{NAME}:predict", f"{served.url}/v2/models/{NAME}/infer"
    good, octets = tensors([instance]), {"content-type": "application/octet-stream"}

    def tensor(name: str, **changes: Any) -> dict[str, Any]:
        return {"inputs": [t | changes if t["name"] == name else t for t in good]}

    bodies: list[tuple[str, Any, dict[str, str]]] = [
        (url, body, {})
        for url in (v1, v2)
        for body in (b"", b"{", b"\xff\xfe", b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a": ' * 2000, b"{}")
    ]
    bodies += [(v1, body, {}) for body in ({"instances": []}, {"instances": None}, {"instances": {}})]
    bodies += [(v1, {"instances": [each]}, {}) for each in (None, 1, "JFK", [], {})]
    bodies += [(v1, {"instances": [instance], "signature": 1}, {})]
    bodies += [
        (v1, {"time": 1, "type": 1, "source": 1, "id": 1, "specversion": 1, "data": 1}, {}),
        (v1, {"instances": [instance]}, {"content-type": "application/cloudevents+json"}),
        (v1, b"{", {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}),
        (v1, b"{", {"ce-specversion": "1.0"}),
    ]
    bodies += [
        (v2, tensor("origin", shape=shape), {})
        for shape in ([], [0], [2], [-1], [1, 2], [1, 1, 1], [10**30], ["a"], None, "1")
    ]
    bodies += [(v2, tensor("origin", datatype=datatype), {}) for datatype in ("INT64", "bytes32", "FP16", "", None)]
    bodies += [
        (v2, tensor("origin", data=data), {}) for data in ([], [1], ["a", "b"], [["JFK", "x"]], [None], "JFK", True, 1)
    ]
    bodies += [(v2, tensor("flight", data=data), {}) for data in ([1.5], ["1"], [True], [2**70], [[1, 2]])]
    bodies += [(v2, {"inputs": inputs}, {}) for inputs in ([], {}, None, [1], [*good, good[0]], [{"name": "origin"}])]
    bodies += [(v2, {"inputs": good, "outputs": [{"name": "no_such_output"}]}, {})]
    bodies += [
        (v2, json.dumps({"inputs": good}).encode(), {"inference-header-content-length": length} | octets)
        for length in ("x", "-1", "5", "")
    ]
    binary = json.dumps(
        {"inputs": [without(t, "data") | {"parameters": {"binary_data_size": 7}} for t in good]}
    ).encode()
    bodies += [(v2, binary + b"\xff" * 9, {"inference-header-content-length": str(len(binary))} | octets)]
    bodies += [(v1, b'{"instances": ["' + b"x" * (9 << 20) + b'"]}', {})]

    with httpx.Client(timeout=20) as client:
        for url, body, headers in bodies:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post(url, content=content, headers={"content-type": "application/json"} | headers)
            accepted, _ = rest_result(answer, lambda body: body)
            assert not accepted, (url, content[:200], answer.text)
        for method, path in (
            ("GET", f"/v1/models/{NAME}:predict"),
            ("DELETE", f"/v2/models/{NAME}/infer"),
            ("POST", "/nowhere"),
            ("POST", f"/v1/models/{NAME}:explain"),
            ("POST", f"/v2/models/{NAME}/versions/7/infer"),
            ("POST", "/v2/repository/models/no_such_model/load"),
            ("POST", "/v2/repository/models/no_such_model/unload"),
        ):
            accepted, _ = rest_result(client.request(method, f"{served.url}{path}", json={"inputs": good}), id)
            assert not accepted, path
    assert "Traceback" not in served.log_text("model-server")


def test_hostile_grpc_calls_are_refused(served, instance):
    def tensor(name: str, **fields: Any) -> Any:
        return pb.ModelInferRequest.InferInputTensor(name=name, **fields)

    contents = pb.InferTensorContents(bytes_contents=[b"JFK"])
    hostile = [
        pb.ModelInferRequest(model_name=NAME),
        pb.ModelInferRequest(model_name=NAME, inputs=[tensor("origin", datatype="BYTES", shape=[1])]),
        pb.ModelInferRequest(model_name=NAME, inputs=[tensor("origin", datatype="X", shape=[1], contents=contents)]),
        pb.ModelInferRequest(model_name=NAME, inputs=[tensor("origin", datatype="FP16", shape=[1])]),
        pb.ModelInferRequest(
            model_name=NAME, inputs=[tensor("origin", datatype="BYTES", shape=[1])], raw_input_contents=[b"\xff"]
        ),
        pb.ModelInferRequest(
            model_name=NAME, inputs=[tensor("origin", datatype="BYTES", shape=[1])], raw_input_contents=[b"", b""]
        ),
        pb.ModelInferRequest(
            model_name=NAME,
            inputs=[
                tensor("origin", datatype="BYTES", shape=[1], contents=pb.InferTensorContents(bytes_contents=[b"\xff"]))
            ],
        ),
        pb.ModelInferRequest(model_name=NAME, model_version="77"),
    ]
    for request in hostile:
        accepted, error = grpc_infer(served, request)
        assert not accepted
        assert "rror" not in error or "internal" not in error


def test_curl_without_a_content_type_and_binary_tensors_are_understood(served, instance):
    form = {"content-type": "application/x-www-form-urlencoded"}
    for path, body in ((f"v1/models/{NAME}:predict", {"instances": [instance]}),):
        answer = httpx.post(f"{served.url}/{path}", content=json.dumps(body), headers=form)
        assert answer.status_code == 200, answer.text
    answer = httpx.post(
        f"{served.url}/v2/models/{NAME}/infer", content=json.dumps({"inputs": tensors([instance])}), headers=form
    )
    assert answer.status_code == 200, answer.text

    inputs = []
    for each in tensors([instance]):
        data = np.array(each["data"], dtype=np.int64 if each["datatype"] == "INT64" else np.object_).reshape(1, 1)
        tensor = InferInput(each["name"], [1, 1], each["datatype"])
        tensor.set_data_from_numpy(data)
        inputs.append(tensor)
    request = InferRequest(NAME, inputs, request_id="mine")
    body, length = request.to_rest()
    answer = httpx.post(
        f"{served.url}/v2/models/{NAME}/infer",
        content=body,
        headers={"inference-header-content-length": str(length), "content-type": "application/octet-stream"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "mine"
    with grpc.insecure_channel(f"127.0.0.1:{served.settings.port('model_grpc')}") as channel:
        raw = GRPCInferenceServiceStub(channel).ModelInfer(request.to_grpc(), timeout=10)
    assert len(raw.raw_output_contents) == 7


def test_only_the_outputs_that_were_requested_come_and_binary_where_that_was_requested(served, instance):
    body = {"inputs": tensors([instance]), "parameters": {"binary_data_output": True}}
    outputs = [{"name": "score"}, {"name": "decision", "parameters": {"binary_data": False}}]
    answer = httpx.post(f"{served.url}/v2/models/{NAME}/infer", json=body | {"outputs": outputs})
    length = int(answer.headers["inference-header-content-length"])
    score, decision = json.loads(answer.content[:length])["outputs"]
    assert (score["name"], decision["name"], decision["data"]) == ("score", "decision", ["late"])
    assert 0 < struct.unpack("<d", answer.content[length:])[0] < 1
    plain = httpx.post(
        f"{served.url}/v2/models/{NAME}/infer", json={"inputs": tensors([instance]), "outputs": [{"name": "revision"}]}
    ).json()
    assert [output["name"] for output in plain["outputs"]] == ["revision"]
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name="decision")]
    by_grpc = grpc_request(tensors([instance]))
    by_grpc.outputs.extend(wanted)
    assert grpc_infer(served, by_grpc) == (True, [{"decision": "late"}])


def test_a_version_in_the_path_is_that_of_what_serves_or_unknown(served, instance):
    body = {"inputs": tensors([instance])}
    at = f"{served.url}/v2/models/{NAME}/versions"
    assert httpx.post(f"{at}/1/infer", json=body).json()["model_version"] == "1"
    assert httpx.get(f"{at}/1/ready").json() == {"name": NAME, "ready": True}
    assert httpx.get(f"{at}/1").json()["name"] == NAME
    for answer in (httpx.post(f"{at}/9/infer", json=body), httpx.get(f"{at}/9/ready"), httpx.get(f"{at}/9")):
        assert (answer.status_code, "is not served, 1 is" in answer.json()["error"]) == (404, True)


def test_a_request_names_its_traffic_and_may_choose_a_revision_in_every_protocol(served, instance):
    revision = call_v1(served, [instance])[1][0]["revision"]
    headers = {"X-Throughline-Traffic": "test", "X-Throughline-Revision": revision}
    metadata = [(name.lower(), value) for name, value in headers.items()]
    v1 = httpx.post(f"{served.url}/v1/models/{NAME}:predict", json={"instances": [instance]}, headers=headers)
    v2 = httpx.post(f"{served.url}/v2/models/{NAME}/infer", json={"inputs": tensors([instance])}, headers=headers)
    _, by_grpc = grpc_infer(served, grpc_request(tensors([instance])), metadata=metadata)
    outputs = {output["name"]: output["data"] for output in v2.json()["outputs"]}
    ids = [v1.json()["predictions"][0]["prediction_id"], outputs["prediction_id"][0], by_grpc[0]["prediction_id"]]
    flush(served)
    logged = {row["id"]: row["traffic"] for row in served.table().to_dicts()}
    assert [logged[each] for each in ids] == ["test"] * 3
    for header, value in (("X-Throughline-Traffic", "holiday"), ("X-Throughline-Revision", "v9")):
        refused = httpx.post(
            f"{served.url}/v1/models/{NAME}:predict", json={"instances": [instance]}, headers={header: value}
        )
        assert (refused.status_code, value in refused.json()["error"]) == (400, True)
        accepted, error = grpc_infer(served, grpc_request(tensors([instance])), metadata=[(header.lower(), value)])
        assert (accepted, value in error) == (False, True)


def test_a_refused_revision_keeps_the_served_one_and_a_good_one_replaces_it(served, usecase, instance, doubles):
    """Through `serve`, with the model file where a registry keeps it."""
    registry = served.settings.home / "registered"
    registry.mkdir()
    (registry / "model.onnx").write_bytes(doubles["model_bytes"](bias=1.0))
    model = seal_model(served.settings, registry, version=2)
    decision = decisions.recorded(served.settings, NAME, release_of(model))
    before = call_v1(served, [instance])[1][0]

    with pytest.raises(ThroughlineError, match="the gate's decision is reject"):
        require_release(served.settings, usecase, model, decision.model_copy(update={"decision": "reject"}))

    require_release(served.settings, usecase, model, decision)
    endpoint = serve(LocalTarget(served.settings), usecase, model)
    assert (endpoint.model, endpoint.address) == (ModelReference(NAME, 2), f"{served.url}/v1/models/{NAME}:predict")
    after = call_v1(served, [instance])[1][0]
    assert (before["model_version"], after["model_version"]) == (1, 2)
    assert after["score"] > before["score"]
    served_now = httpx.get(f"{served.url}/v1/throughline/revisions").json()
    assert [(r["version"], r["share"], r["role"], r["revision"]) for r in served_now] == [
        (2, 1.0, "stable", endpoint.revision)
    ]

    (registry / "model.onnx").write_bytes(b"not a model")
    broken = seal_model(served.settings, registry, version=3)
    decisions.recorded(served.settings, NAME, release_of(broken))
    with pytest.raises(ThroughlineError, match=r"refused flight_delay/3.*not an ONNX model"):
        serve(LocalTarget(served.settings), usecase, broken)
    assert call_v1(served, [instance])[1][0]["model_version"] == 2

    file = served.settings.serving_home / NAME / "2" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(doubles["model_bytes"](bias=2.0))
    answer = httpx.post(f"{served.url}/v2/repository/models/{NAME}/load")
    assert (answer.status_code, "changed: model.onnx" in answer.json()["error"]) == (409, True)
    (refused,) = history.events(served.settings, NAME, action="refused")
    assert (refused.target, "changed: model.onnx" in refused.reason) == (f"{NAME}/2", True)
    assert call_v1(served, [instance])[1][0]["score"] == after["score"]
    file.write_bytes(good)
    assert httpx.post(f"{served.url}/v2/repository/models/{NAME}/load").status_code == 200


def test_no_event_is_lost_while_the_collector_is_killed_and_the_server_restarted(tmp_path, doubles, instance):
    with place(tmp_path / "home") as at:
        doubles["put_revision"](at.settings)
        at.start_collector()
        at.start_server()
        answered: list[str] = []
        stop = threading.Event()

        def send_requests() -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    try:
                        body = {"instances": [instance] * 5}
                        answer = client.post(f"{at.url}/v1/models/{NAME}:predict", json=body, timeout=20)
                        answered.extend(p["prediction_id"] for p in answer.json()["predictions"])
                    except (httpx.HTTPError, ValueError):  # while the server is restarted
                        time.sleep(0.05)

        clients = [threading.Thread(target=send_requests) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            time.sleep(1.5)
            at.end("collector", signal.SIGKILL)
            time.sleep(0.5)
            at.end("model-server", signal.SIGKILL)
            at.start_server()
            time.sleep(0.5)
            at.start_collector()
            time.sleep(0.5)
            assert at.end("model-server") == 0
        finally:
            stop.set()
            for client in clients:
                client.join()
        at.start_server()  # what was left when the time to send it was over is sent now
        drain(at.settings, at.url)
        assert at.end("model-server") == 0
        assert at.end("collector") == 0
        log = at.table()
        assert len(answered) > 1000
        assert set(answered) <= set(log["id"])
        assert log["id"].n_unique() == log.height
        for _, sequence in log.group_by("source").agg("sequence")["source", "sequence"].iter_rows():
            assert sorted(sequence) == list(range(1, len(sequence) + 1))


def test_beyond_loopback_a_token_is_demanded_and_without_a_revision_the_model_is_not_ready(tmp_path, instance):
    with place(tmp_path / "home", bind="0.0.0.0", token="s3cret") as at:
        at.start_server()
        url, right = f"{at.url}/v1/models/{NAME}:predict", {"Authorization": "Bearer s3cret"}
        assert httpx.get(f"{at.url}/v2/health/live").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            assert httpx.post(url, json={"instances": [instance]}, headers=headers).status_code == 401
            assert httpx.get(f"{at.url}/metrics", headers=headers).status_code == 401
        answer = httpx.post(url, json={"instances": [instance]}, headers=right)
        assert (answer.status_code, "No revision" in answer.json()["error"]) == (503, True)
        accepted, error = grpc_infer(at, pb.ModelInferRequest(model_name="other"))
        assert (accepted, "Bearer" in error) == (False, True)
        accepted, error = grpc_infer(
            at, pb.ModelInferRequest(model_name="other"), metadata=[("authorization", "Bearer s3cret")]
        )
        assert (accepted, "other" in error) == (False, True)


def test_server_and_collector_import_no_more_than_they_use(tmp_path, usecase):
    """Both as `up` starts them, on a home with real features, after a prediction and its event."""
    both = {"torch", "feast", "mlflow", "pyspark", "pandas", "dagster", "sklearn", "matplotlib", "scipy", "kubernetes"}
    with place(tmp_path / "home") as at:
        instances = make_home(at.settings, usecase)
        at.start_collector("-X", "importtime")
        at.start_server("-X", "importtime", "-m", "serving")
        assert call_v1(at, instances[:2])[0]
        assert flush(at)["written"] == 2
        held = {name: psutil.Process(each.pid).memory_info().rss / 1e6 for name, each in at.processes.items()}
        for name, absent in {
            "model-server": both | {"deltalake", "pyarrow"},
            "collector": both | {"kserve", "onnxruntime", "duckdb"},
        }.items():
            imported = set(re.findall(r"^import time:.*\| +(\w+)$", at.log_text(name), re.MULTILINE))
            assert {"polars", "uvicorn"} <= imported
            assert imported & absent == set(), name
        assert held["model-server"] < 300, held
        assert held["collector"] < 260, held  # pyarrow, which delta-rs is given tables by, is 70 of them


def test_a_port_in_use_is_one_clear_line(served, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT / "platform"), str(PROJECT_ROOT)]),
        "THROUGHLINE_HOME": str(tmp_path),
        "THROUGHLINE_PORT_BASE": str(served.settings.port_base),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "serving"], env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if "Port" in line]
    assert "THROUGHLINE_PORT_BASE" in line
    assert "Traceback" not in ended.stderr
    shutil.rmtree(tmp_path)
