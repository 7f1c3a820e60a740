"""`:explain`, KServe's V1 route: explains a score, logs no prediction, and does not hold up predictions."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import uvicorn
from starlette.testclient import TestClient

from serving import model as serving_model
from serving.deployed import Deployed
from serving.model import UseCaseModel
from serving.server import Server
from throughline.evaluation.background import background_of, served_path
from throughline.evaluation.explain import AT_ONCE
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings, load_settings
from throughline.records import Revision
from throughline.rollout import endpoint
from throughline.services.ports import take_ports
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance

USECASE = get_usecase("flight_delay")
DOUBLES = runpy.run_path(str(PROJECT_ROOT / "tests" / "support" / "fake_store_server.py"))
TOKEN = "a-token-that-must-not-be-returned"
AGAINST = pl.DataFrame(
    {
        "departure_hour": [6.0, 9.0, 14.0, 21.0],
        "aircraft_flights": [1.0, None, 2.0, 5.0],
        "carrier": ["B6", "UA", None, "DL"],
    }
)


class Place:
    """The server's application over one real revision whose features come from a fake store."""

    def __init__(self, home: Path) -> None:
        self.settings: Settings = load_settings(home=home, port_base=take_ports())
        self.revision: Revision = DOUBLES["put_revision"](self.settings, version=3)
        self.folder = self.settings.serving_home / USECASE.name
        self.server = Server(self.settings, {USECASE.name: USECASE}, DOUBLES["FakeFeatureReader"])
        self.server.repository.load_models()
        self.client = TestClient(self.server.create_app(), base_url="http://localhost", raise_server_exceptions=False)

    @property
    def model(self) -> UseCaseModel:
        return self.server.repository.get_model(USECASE.name)

    def give_background(self) -> None:
        path = served_path(self.folder, self.revision.sha256)
        path.parent.mkdir(exist_ok=True)
        path.write_text(background_of(self.model.deployed.stable.served, AGAINST).model_dump_json())

    def send(self, *instances: dict[str, Any], verb: str = "explain", **headers: str) -> tuple[int, Any]:
        answer = self.client.post(
            f"/v1/models/{USECASE.name}:{verb}", json={"instances": list(instances)}, headers=headers
        )
        return answer.status_code, answer.json()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "home")
    made.give_background()
    yield made
    made.server.repository.close()
    made.server.outbox.close()


INSTANCE = example_instance(USECASE)


def test_an_explanation_sums_to_the_score_that_a_prediction_gives(place: Place) -> None:
    status, answer = place.send(INSTANCE)
    assert status == 200, answer
    (it,) = answer["predictions"]
    (predicted,) = place.send(INSTANCE, verb="predict")[1]["predictions"]
    assert {name: it[name] for name in ("model_name", "model_version", "score", "decision")} == {
        name: predicted[name] for name in ("model_name", "model_version", "score", "decision")
    }
    adds = {one["feature"]: one["contribution"] for one in it["explanations"]}
    assert set(adds) == {"departure_hour", "aircraft_flights", "carrier"}
    assert it["base_value"] + sum(adds.values()) == pytest.approx(it["score"], abs=1e-9)
    assert [abs(one) for one in adds.values()] == sorted((abs(one) for one in adds.values()), reverse=True)
    assert place.send(INSTANCE)[1] == answer


def test_a_missing_feature_is_null(place: Place) -> None:
    (it,) = place.send(INSTANCE | {"tailnum": "N0NE"})[1]["predictions"]
    values = {one["feature"]: one["value"] for one in it["explanations"]}
    assert values == {"departure_hour": 9.0, "aircraft_flights": None, "carrier": "B6"}


def test_an_explanation_is_no_prediction(place: Place) -> None:
    before = place.server.metrics.render()
    it = place.send(INSTANCE)[1]["predictions"][0]
    assert "prediction_id" not in it
    assert place.server.outbox.waiting + place.server.outbox.lost == 0
    counted = [line for line in place.server.metrics.render().splitlines() if line.startswith(b"throughline_pred")]
    assert counted == [line for line in before.splitlines() if line.startswith(b"throughline_pred")]
    place.send(INSTANCE, verb="predict")
    assert b"throughline_predictions_total{" in place.server.metrics.render()


def test_the_callers_token_is_not_in_the_answer(place: Place) -> None:
    """KServe's data plane answers `:explain` with the headers of the request."""
    answer = place.client.post(
        f"/v1/models/{USECASE.name}:explain",
        json={"instances": [INSTANCE]},
        headers={"Authorization": f"Bearer {TOKEN}", "X-Mine": "1"},
    )
    assert answer.status_code == 200
    assert TOKEN not in str(answer.headers)
    assert set(answer.headers) == {"content-type", "content-length", "x-throughline-home"}


def test_without_a_background_the_answer_is_503_with_the_reason(place: Place) -> None:
    served_path(place.folder, place.revision.sha256).unlink()
    status, answer = place.send(INSTANCE)
    assert status == 503
    assert "Nothing to compare with was deployed" in answer["error"]
    assert place.send(INSTANCE, verb="predict")[0] == 200


@pytest.mark.parametrize("content", ["not json", '{"sha256": "1", "numeric": {"x": [1]}, "categorical": {}}'])
def test_a_damaged_background_or_one_of_another_model_is_refused(place: Place, content: str) -> None:
    served_path(place.folder, place.revision.sha256).write_text(content)
    status, answer = place.send(INSTANCE)
    assert status == 503
    assert "again" in answer["error"]


@pytest.mark.parametrize(
    ("instances", "field"),
    [([INSTANCE | {"origin": 7}], "instances[0].origin"), ([], "instances"), ([INSTANCE] * (AT_ONCE + 1), "instances")],
)
def test_a_bad_request_is_the_callers_fault_and_names_the_field(place: Place, instances: list, field: str) -> None:
    status, answer = place.send(*instances)
    assert status == 400
    assert answer["error"].startswith(f"{field}: ")


def test_our_client_sends_as_many_as_one_request_may_have_and_raises_the_reason_of_a_refusal(place: Place) -> None:
    config = uvicorn.Config(place.client.app, port=place.settings.port("model_http"), log_config=None)
    listening = uvicorn.Server(config)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    try:
        for _ in range(600):
            if listening.started:
                break
            thread.join(0.05)
        explained = endpoint.explain(place.settings, USECASE, [INSTANCE] * (AT_ONCE + 1))
        assert explained == place.send(INSTANCE)[1]["predictions"] * (AT_ONCE + 1)
        served_path(place.folder, place.revision.sha256).unlink()
        with pytest.raises(ThroughlineError, match="refused the request: Nothing to compare with"):
            endpoint.explain(place.settings, USECASE, [INSTANCE])
    finally:
        listening.should_exit = True
        thread.join(30)


class Held:
    """Holds the model whenever many rows are scored at once, as only an explanation does."""

    def __init__(self, served: Any) -> None:
        self._served, self.begun, self.go_on = served, threading.Event(), threading.Event()
        self.begun_again = threading.Event()
        self.numeric, self.categorical = served.numeric, served.categorical
        self.words, self.run, self.outside = served.words, served.run, served.outside

    def score(self, features: pl.DataFrame) -> np.ndarray:
        if features.height > 4:
            (self.begun_again if self.begun.is_set() else self.begun).set()
            assert self.go_on.wait(30)
        return self._served.score(features)

    def outside_domain(self, features: pl.DataFrame) -> list[list[str]]:
        return self._served.outside_domain(features)


@pytest.fixture
def held(place: Place) -> Held:
    stable = place.model.deployed.stable
    model = Held(stable.served)
    held = replace(stable, loaded=replace(stable.loaded, served=model))  # type: ignore[arg-type]
    place.model.deployed = Deployed(place.model.deployed.revisions, {held.revision.revision: held}, True, 1, print)
    return model


def explain_in_background(place: Place, answers: list) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(place.send(INSTANCE)))
    thread.start()
    return thread


def test_predictions_go_on_while_one_is_explained(place: Place, held: Held) -> None:
    with place.client:  # one event loop for all requests
        answers: list = []
        explaining = explain_in_background(place, answers)
        assert held.begun.wait(30)
        assert place.send(INSTANCE, verb="predict")[0] == 200
        assert answers == []
        held.go_on.set()
        explaining.join(30)
    assert answers[0][0] == 200


def test_explanations_run_one_after_the_other(place: Place, held: Held) -> None:
    with place.client:
        answers: list = []
        first = explain_in_background(place, answers)
        assert held.begun.wait(30)
        second = explain_in_background(place, answers)
        assert not held.begun_again.wait(1)
        held.go_on.set()
        first.join(30)
        second.join(30)
    assert held.begun_again.is_set()
    assert [status for status, _ in answers] == [200, 200]


def test_with_a_full_queue_an_explanation_is_refused(place: Place, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "EXPLANATIONS_WAITING", 0)
    with place.client:
        answers: list = []
        explaining = explain_in_background(place, answers)
        assert held.begun.wait(30)
        status, answer = place.send(INSTANCE)
        assert status == 503
        assert "waiting already" in answer["error"]
        held.go_on.set()
        explaining.join(30)
    assert answers[0][0] == 200


def test_an_explanation_ends_at_its_deadline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "EXPLAIN_DEADLINE_S", -1.0)
    status, answer = place.send(INSTANCE)
    assert status == 503
    assert "not done in time" in answer["error"]
