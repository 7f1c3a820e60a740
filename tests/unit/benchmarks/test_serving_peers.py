"""Every peer of the serving benchmark is sent the same instances, or the features that our server read for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import grpc_client, serving_peers
from benchmarks.serving_peers import Given, Peer, scores
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance

USECASE = get_usecase("flight_delay")


@pytest.fixture
def given() -> Given:
    instances = [{**example_instance(USECASE), "flight": number} for number in range(25)]
    return Given(USECASE, instances, [[float(number), 0.5] for number in range(25)], [["B6"]] * 25)


def sent(given: Given, peer: Peer, rows: int) -> list[dict]:
    return [json.loads(request.partition(b"\r\n\r\n")[2]) for request in given.bodies(peer, rows)]


def test_a_request_holds_the_rows_of_its_size_and_no_row_is_sent_twice(given):
    bare, mlflow = serving_peers.bare_kserve(1, 2), serving_peers.mlflow_serve(Path("m"), Path("f"), 3)
    assert [len(sent(given, bare, rows)) for rows in (1, 10)] == [25, 2]
    flights = [each["flight"] for body in sent(given, bare, 10) for each in body["instances"]]
    assert flights == list(range(20))
    numbers = [row[0] for body in sent(given, mlflow, 10) for row in body["inputs"]["numeric"]]
    assert numbers == list(range(20))


def test_models_are_sent_features_only(given):
    (first, *_) = sent(given, serving_peers.bentoml(Path("m"), Path("s"), 1, Path("e")), 1)
    assert first == {"numeric": [[0.0, 0.5]], "categorical": [["B6"]]}


def test_feast_is_asked_for_the_keys_of_the_declared_entities(given):
    (asked, *_) = sent(given, serving_peers.feast_serve(1), 10)
    assert asked["feature_service"] == USECASE.features.service
    assert set(asked["entities"]) == set(USECASE.entities.values())
    assert {len(keys) for keys in asked["entities"].values()} == {10}


def test_grpc_requests_have_a_tensor_per_field_with_a_value_per_row(given):
    made = grpc_client.requests(USECASE, "m", given.instances, 10)
    assert len(made) == 2
    tensors = {tensor.name: tensor for tensor in made[1].inputs}
    assert set(tensors) == set(USECASE.request)
    assert list(tensors["flight"].contents.int64_contents) == list(range(10, 20))
    assert all(list(tensor.shape) == [10] for tensor in tensors.values())


def test_scores_are_read_from_the_answers_of_either_server():
    assert scores("mlflow_serve", b'{"predictions": {"score": [[0.25], [0.5]]}}') == [0.25, 0.5]
    assert scores("mlflow_serve", b'{"predictions": {"score": [0.25]}}') == [0.25]
    assert scores("bentoml", b"[0.25, 0.5]") == [0.25, 0.5]
