"""A prediction depends on its own request only, is logged with its features, or fails by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from serving.predictor import PendingRequest, Predictor, Unavailable
from throughline.featurestore.online import FeatureRead
from throughline.foundation.clock import WallClock
from throughline.foundation.errors import ThroughlineError
from throughline.records import Revision
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance, parse_instances

USECASE = get_usecase("flight_delay")
REVISION = Revision(
    revision="v1-x",
    usecase="flight_delay",
    name="flight_delay",
    version=1,
    sha256="0" * 64,
    file="1/model.onnx",
    deployed_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class FakeReader:
    """Features made of the request; a carrier of ?? cannot be read, what is stored of OO is too old."""

    def read(self, requests: pl.DataFrame) -> FeatureRead:
        if "??" in requests["carrier"].to_list():
            raise OSError("store gone")
        hour = requests["scheduled_departure"].dt.hour().cast(pl.Float64)
        height = requests.height
        seen = datetime.now(UTC) - timedelta(hours=2)
        expired = {"view": [carrier == "OO" for carrier in requests["carrier"]]}
        return FeatureRead(requests.with_columns(hour=hour), {"view": [seen] * height}, [[]] * height, expired)

    def reload(self) -> None:
        pass


class FakeModel:
    numeric, categorical = ["hour"], ["carrier"]

    def __init__(self, score: float | None = None) -> None:
        self._score = score
        self.calls: list[int] = []

    def score(self, features: pl.DataFrame) -> np.ndarray:
        self.calls.append(features.height)
        return np.full(features.height, self._score) if self._score is not None else features["hour"].to_numpy() / 24

    def outside_domain(self, features: pl.DataFrame) -> list[list[str]]:
        return [["hour"] if hour > 22 else [] for hour in features["hour"]]


def predictor(model: FakeModel):
    events, observed = [], []
    made = Predictor(
        USECASE,
        REVISION,
        model,
        FakeReader(),
        WallClock(),
        events.extend,
        lambda *figures: observed.append(figures),
    )
    return made, events, observed


def request(hour: int = 12, carrier: str = "B6", rows: int = 1) -> PendingRequest:
    instance = example_instance(USECASE) | {"scheduled_departure": f"2013-04-01T{hour:02}:00:00Z", "carrier": carrier}
    return PendingRequest(parse_instances(USECASE, [instance] * rows))


def test_requests_answered_together_are_scored_apart_and_in_order():
    model = FakeModel()
    made, events, observed = predictor(model)
    answers = made.predict([request(6), request(23, rows=2), request(12)])
    assert [[p.score for p in answer] for answer in answers] == [[6 / 24], [23 / 24] * 2, [0.5]]
    assert model.calls == [1, 2, 1]
    assert [event["flags"] for event in events] == [[], ["outside_domain:hour"], ["outside_domain:hour"], []]
    assert [event["id"] for event in events] == [p.prediction_id for answer in answers for p in answer]
    assert events[0]["features"] == {"hour": 6.0, "carrier": "B6"}
    assert events[0]["latency_ms"] > 0
    assert [(revision, decision) for revision, decision, *_ in observed] == [
        (REVISION, p.decision) for answer in answers for p in answer
    ]
    assert [flags for _, _, flags, _ in observed] == [event["flags"] for event in events]
    assert observed[0][3]["view"] == pytest.approx(7200, abs=60)


def test_features_that_are_too_old_to_be_used_are_flagged():
    made, events, _ = predictor(FakeModel())
    made.predict([request(), request(carrier="OO")])
    assert [event["flags"] for event in events] == [[], ["expired:view"]]


def test_a_failing_request_does_not_fail_the_rest_of_its_batch():
    made, events, _ = predictor(FakeModel())
    first, failed, last = made.predict([request(6), request(carrier="??"), request(12)])
    assert (first[0].score, last[0].score) == (0.25, 0.5)
    assert isinstance(failed, Unavailable)
    assert "store gone" not in str(failed)
    assert len(events) == 2


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_score_that_is_no_probability_is_not_answered(score):
    made, events, _ = predictor(FakeModel(score))
    (answer,) = made.predict([request()])
    assert isinstance(answer, Unavailable)
    assert events == []


def test_the_decision_follows_the_declared_costs():
    threshold = USECASE.prediction.decision.threshold
    for score, decision in ((threshold, "late"), (threshold - 1e-9, "on_time")):
        made, _, _ = predictor(FakeModel(score))
        assert made.predict([request()])[0][0].decision == decision


def test_a_model_that_does_not_fit_the_features_is_refused_before_it_serves():
    made, events, _ = predictor(FakeModel(float("nan")))
    with pytest.raises(ThroughlineError, match="not a probability"):
        made.warm_up()
    predictor(FakeModel(0.5))[0].warm_up()
    assert events == []
