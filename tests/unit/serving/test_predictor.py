"""A prediction depends on its own request only, is logged with its features, or fails by itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from serving.loading import Loaded
from serving.predictor import Call, Predictor, Unavailable
from throughline.featurestore.online import FeatureReader
from throughline.featurestore.online_format import OnlineView, Row
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import Revision
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance, parse_columns

USECASE = get_usecase("flight_delay")
NOW = datetime(2013, 4, 1, 11, tzinfo=UTC)
REVISION = Revision(
    revision="v1-x",
    usecase="flight_delay",
    name="flight_delay",
    version=1,
    sha256="0" * 64,
    file="1/model.onnx",
    deployed_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class Clock:
    def now(self) -> datetime:
        return NOW


class FakeRows:
    """A row per carrier; one of ?? cannot be read, that of OO is too old, ZZ has none."""

    near = True

    def version(self) -> int | None:
        return None

    def fetch(self, wanted: Sequence[tuple[OnlineView, Sequence[bytes]]]) -> list[dict[bytes, Row]]:
        keys = [key for _, mine in wanted for key in mine]
        if any(b"??" in key for key in keys):
            raise OSError("store gone")
        ages = {key: timedelta(days=9) if b"OO" in key else timedelta(hours=2) for key in keys if b"ZZ" not in key}
        return [{key: (NOW - ages[key], {"late": 0.5}) for key in mine if key in ages} for _, mine in wanted]


class Reader(FeatureReader):
    def reload(self) -> None:
        view = OnlineView(
            name="view",
            entities=list(USECASE.entities),
            keys={"carrier": "STRING"},
            features=["late"],
            ttl=timedelta(days=1),
        )
        self._clock = Clock()
        self.take(FakeRows(), [view])


class FakeModel:
    """The local hour as a score; hours after 22 were never seen."""

    numeric, categorical = ["departure_hour", "late"], ["carrier"]

    def __init__(self, score: float | None = None) -> None:
        self._score = score
        self.calls: list[int] = []

    def run(self, numeric: np.ndarray, words: np.ndarray) -> np.ndarray:
        self.calls.append(len(numeric))
        return np.full(len(numeric), self._score) if self._score is not None else numeric[:, 0].astype(np.float64) / 24

    def outside(self, numeric: np.ndarray, words: np.ndarray) -> list[list[str]]:
        return [["departure_hour"] if hour > 22 else [] for hour in numeric[:, 0]]

    def words(self, columns: Sequence[Sequence[Any]], rows: int) -> np.ndarray:
        return np.array(columns, object).T


class Counted:
    """What the predictor counts."""

    def __init__(self) -> None:
        self.predictions: list[Any] = []
        self.failures: list[str] = []
        self.answers: list[str] = []

    def predicted(self, traffic: str, predictions: Any, now: datetime, seconds: float) -> None:
        self.answers.append(traffic)
        for prediction, times in predictions:
            self.predictions.append((traffic, prediction, (now - times["view"]) if times["view"] else None))

    def failed(self, traffic: str) -> None:
        self.failures.append(traffic)

    def took(self, **seconds: float) -> None:
        assert all(value >= 0 for value in seconds.values())


@pytest.fixture
def predictor(settings: Settings):
    def made(model: FakeModel) -> tuple[Predictor, list[list[dict[str, Any]]], Counted]:
        writes: list[list[dict[str, Any]]] = []
        counted = Counted()
        loaded = Loaded(model, "none", "")
        reader = Reader(settings, USECASE)
        return Predictor(USECASE, REVISION, loaded, reader, Clock(), writes.append, counted), writes, counted

    return made


def call(hour: int = 13, carrier: str = "B6", rows: int = 1, **how: Any) -> Call:
    """A request for a flight at this hour of UTC: four hours later than in New York."""
    instance = example_instance(USECASE) | {"scheduled_departure": f"2013-04-01T{hour:02}:00:00Z", "carrier": carrier}
    return Call(parse_columns(USECASE, [instance] * rows), rows, **how)


def test_requests_answered_together_are_scored_apart_and_in_order(predictor):
    model = FakeModel()
    made, writes, counted = predictor(model)
    answers = made.predict([call(10), call(3, rows=2), call(16)])
    assert [[p.score for p in answer] for answer in answers] == [[0.25], [23 / 24] * 2, [0.5]]
    assert model.calls == [1, 2, 1]
    flags = [p.flags for answer in answers for p in answer]
    assert flags == [[], ["outside_domain:departure_hour"], ["outside_domain:departure_hour"], []]
    (events,) = writes
    assert [event["flags"] for event in events] == flags
    assert [event["id"] for event in events] == [p.prediction_id for answer in answers for p in answer]
    assert events[0]["features"] == {"departure_hour": 6.0, "late": 0.5, "carrier": "B6"}
    assert events[0]["feature_times"] == {"view": NOW - timedelta(hours=2)}
    assert events[0]["latency_ms"] > 0
    assert [prediction for _, prediction, _ in counted.predictions] == [p for answer in answers for p in answer]
    assert {age for *_, age in counted.predictions} == {timedelta(hours=2)}
    assert counted.answers == ["production"] * 3


def test_an_answer_says_what_it_rests_on(predictor):
    made, _, _ = predictor(FakeModel())
    answers = made.predict([call(), call(carrier="OO"), call(carrier="ZZ")])
    unknown = [f"unknown_entity:{name}" for name in USECASE.entities]
    assert [answer[0].flags for answer in answers] == [[], ["expired:view"], unknown]


@pytest.mark.parametrize("date", ["2016-04-01T13:00:00Z", "2013-03-30T13:00:00Z"])
def test_a_request_years_ahead_or_days_late_is_flagged(predictor, date):
    made, _, _ = predictor(FakeModel())
    columns = parse_columns(USECASE, [example_instance(USECASE) | {"scheduled_departure": date}])
    assert made.predict([Call(columns, 1)])[0][0].flags == ["outside_domain:scheduled_departure"]


def test_the_event_names_class_of_traffic_model_file_and_revision(predictor):
    made, writes, _ = predictor(FakeModel())
    made.predict([call(traffic="load_test")])
    event = writes[0][0]
    assert (event["traffic"], event["model_sha256"], event["revision"]) == ("load_test", "0" * 64, "v1-x")


def test_a_failing_request_does_not_fail_the_rest_of_its_batch_and_logs_nothing(predictor):
    made, writes, counted = predictor(FakeModel())
    first, failed, last = made.predict([call(10), call(carrier="??"), call(16)])
    assert (first[0].score, last[0].score) == (0.25, 0.5)
    assert isinstance(failed, Unavailable)
    assert "store gone" not in str(failed)
    assert [event["id"] for events in writes for event in events] == [first[0].prediction_id, last[0].prediction_id]
    assert counted.failures == ["production"]


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_score_that_is_no_probability_is_not_answered(predictor, score):
    made, writes, counted = predictor(FakeModel(score))
    (answer,) = made.predict([call(rows=2)])
    assert isinstance(answer, Unavailable)
    assert (writes, counted.failures) == ([], ["production"])


def test_the_decision_follows_the_declared_costs(predictor):
    threshold = USECASE.prediction.decision.threshold
    for score, decision in ((threshold, "late"), (threshold - 1e-9, "on_time")):
        made, _, _ = predictor(FakeModel(score))
        assert made.predict([call()])[0][0].decision == decision


def test_a_model_that_does_not_fit_the_features_is_refused_before_it_serves(predictor):
    made, writes, _ = predictor(FakeModel(float("nan")))
    with pytest.raises(ThroughlineError, match="not a probability"):
        made.warm_up()
    good = FakeModel(0.5)
    good.numeric = ["nowhere"]
    with pytest.raises(ThroughlineError, match="nowhere"):
        predictor(good)[0].warm_up()
    assert predictor(FakeModel(0.5))[0].warm_up() > 0
    assert writes == []
