"""`:explain` says why, as KServe's V1 route, without being a prediction, and never at the cost of predictions."""

from __future__ import annotations

import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import uvicorn
from starlette.testclient import TestClient

from serving import model as serving_model
from serving.model import UseCaseModel
from serving.server import Server
from throughline.evaluation.background import background_of, served_path
from throughline.evaluation.explain import AT_ONCE
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings, load_settings
from throughline.records import Revision
from throughline.rollout.endpoint import explain as ask_explain
from throughline.services.ports import take_ports
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance

USECASE = get_usecase("flight_delay")
DOUBLES = runpy.run_path(str(PROJECT_ROOT / "tests" / "support" / "serving_bench_server.py"))
TOKEN = "a-token-that-must-not-come-back"
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
        self.client = TestClient(self.server.create_app(), raise_server_exceptions=False)

    @property
    def model(self) -> UseCaseModel:
        return self.server.repository.get_model(USECASE.name)

    def give_background(self) -> None:
        path = served_path(self.folder, self.revision.sha256)
        path.parent.mkdir(exist_ok=True)
        path.write_text(background_of(self.model.predictor._served, AGAINST).model_dump_json())

    def ask(self, *instances: dict[str, Any], verb: str = "explain", **headers: str) -> tuple[int, Any]:
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
    made.server.publisher.close(timeout_s=0)  # nobody receives the events


INSTANCE = example_instance(USECASE)


def test_an_explanation_sums_to_the_score_that_a_prediction_gives(place: Place) -> None:
    status, told = place.ask(INSTANCE)
    assert status == 200, told
    (it,) = told["predictions"]
    (predicted,) = place.ask(INSTANCE, verb="predict")[1]["predictions"]
    assert {name: it[name] for name in ("model_name", "model_version", "score", "decision")} == {
        name: predicted[name] for name in ("model_name", "model_version", "score", "decision")
    }
    adds = {one["feature"]: one["contribution"] for one in it["explanations"]}
    assert set(adds) == {"departure_hour", "aircraft_flights", "carrier"}
    assert it["base_value"] + sum(adds.values()) == pytest.approx(it["score"], abs=1e-9)
    assert [abs(one) for one in adds.values()] == sorted((abs(one) for one in adds.values()), reverse=True)
    assert place.ask(INSTANCE)[1] == told


def test_a_missing_feature_is_told_as_null(place: Place) -> None:
    (it,) = place.ask(INSTANCE | {"tailnum": "N0NE"})[1]["predictions"]
    values = {one["feature"]: one["value"] for one in it["explanations"]}
    assert values == {"departure_hour": 13.0, "aircraft_flights": None, "carrier": "B6"}


def test_an_explanation_is_no_prediction(place: Place) -> None:
    before = place.server.metrics.render()
    it = place.ask(INSTANCE)[1]["predictions"][0]
    assert "prediction_id" not in it
    assert place.server.publisher.waiting + place.server.publisher.sent + place.server.publisher.lost == 0
    counted = [line for line in place.server.metrics.render().splitlines() if line.startswith(b"throughline_pred")]
    assert counted == [line for line in before.splitlines() if line.startswith(b"throughline_pred")]
    place.ask(INSTANCE, verb="predict")
    assert b"throughline_predictions_total{" in place.server.metrics.render()


def test_the_callers_token_does_not_come_back(place: Place) -> None:
    """KServe's data plane answers `:explain` with the headers of the request."""
    answer = place.client.post(
        f"/v1/models/{USECASE.name}:explain",
        json={"instances": [INSTANCE]},
        headers={"Authorization": f"Bearer {TOKEN}", "X-Mine": "1"},
    )
    assert answer.status_code == 200
    assert TOKEN not in str(answer.headers)
    assert set(answer.headers) == {"content-type", "content-length"}


def test_without_a_background_the_answer_is_503_and_says_why(place: Place) -> None:
    served_path(place.folder, place.revision.sha256).unlink()
    status, told = place.ask(INSTANCE)
    assert status == 503
    assert "Nothing to compare with was deployed" in told["error"]
    assert place.ask(INSTANCE, verb="predict")[0] == 200


@pytest.mark.parametrize("content", ["not json", '{"sha256": "1", "numeric": {"x": [1]}, "categorical": {}}'])
def test_a_background_that_is_none_or_of_another_model_is_refused(place: Place, content: str) -> None:
    served_path(place.folder, place.revision.sha256).write_text(content)
    status, told = place.ask(INSTANCE)
    assert status == 503
    assert "again" in told["error"]


@pytest.mark.parametrize(
    ("instances", "field"),
    [([INSTANCE | {"origin": 7}], "instances[0].origin"), ([], "instances"), ([INSTANCE] * (AT_ONCE + 1), "instances")],
)
def test_a_bad_request_is_the_callers_fault_and_names_the_field(place: Place, instances: list, field: str) -> None:
    status, told = place.ask(*instances)
    assert status == 400
    assert told["error"].startswith(f"{field}: ")


def test_our_own_client_asks_for_as_many_as_are_taken_at_once_and_repeats_a_refusal(place: Place) -> None:
    config = uvicorn.Config(place.client.app, port=place.settings.port("model_http"), log_config=None)
    listening = uvicorn.Server(config)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    try:
        for _ in range(600):
            if listening.started:
                break
            thread.join(0.05)
        told = ask_explain(place.settings, USECASE, [INSTANCE] * (AT_ONCE + 1))
        assert told == place.ask(INSTANCE)[1]["predictions"] * (AT_ONCE + 1)
        served_path(place.folder, place.revision.sha256).unlink()
        with pytest.raises(ThroughlineError, match="refused the request: Nothing to compare with"):
            ask_explain(place.settings, USECASE, [INSTANCE])
    finally:
        listening.should_exit = True
        thread.join(30)


class Held:
    """Holds the model whenever many rows are scored at once, as only an explanation does."""

    def __init__(self, served: Any) -> None:
        self._served, self.begun, self.go_on = served, threading.Event(), threading.Event()
        self.begun_again = threading.Event()
        self.numeric, self.categorical = served.numeric, served.categorical

    def score(self, features: pl.DataFrame) -> np.ndarray:
        if features.height > 4:
            (self.begun_again if self.begun.is_set() else self.begun).set()
            assert self.go_on.wait(30)
        return self._served.score(features)

    def outside_domain(self, features: pl.DataFrame) -> list[list[str]]:
        return self._served.outside_domain(features)


@pytest.fixture
def held(place: Place) -> Held:
    place.model.predictor._served = Held(place.model.predictor._served)
    return place.model.predictor._served


def ask_in_background(place: Place, answers: list) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(place.ask(INSTANCE)))
    thread.start()
    return thread


def test_predictions_go_on_while_one_is_explained(place: Place, held: Held) -> None:
    with place.client:  # one event loop for all requests
        answers: list = []
        asking = ask_in_background(place, answers)
        assert held.begun.wait(30)
        assert place.ask(INSTANCE, verb="predict")[0] == 200
        assert answers == []
        held.go_on.set()
        asking.join(30)
    assert answers[0][0] == 200


def test_an_explanation_waits_its_turn(place: Place, held: Held) -> None:
    with place.client:
        answers: list = []
        first = ask_in_background(place, answers)
        assert held.begun.wait(30)
        second = ask_in_background(place, answers)
        assert not held.begun_again.wait(1)
        held.go_on.set()
        first.join(30)
        second.join(30)
    assert held.begun_again.is_set()
    assert [status for status, _ in answers] == [200, 200]


def test_when_too_many_wait_the_next_is_refused(place: Place, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "EXPLANATIONS_WAITING", 0)
    with place.client:
        answers: list = []
        asking = ask_in_background(place, answers)
        assert held.begun.wait(30)
        status, told = place.ask(INSTANCE)
        assert status == 503
        assert "waiting already" in told["error"]
        held.go_on.set()
        asking.join(30)
    assert answers[0][0] == 200


def test_what_takes_too_long_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "EXPLAIN_DEADLINE_S", -1.0)
    status, told = place.ask(INSTANCE)
    assert status == 503
    assert "not done in time" in told["error"]
