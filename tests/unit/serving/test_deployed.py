"""The class of a request's traffic: its own word, or the server's where that only gets copies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving.deployed import TRAFFIC_HEADER, Deployed
from tests.support.kserve_revisions import of, revision
from throughline.usecase.requests import BadRequest

ONE = revision(1)


class FakePredictor:
    """Answers nothing, and keeps the calls."""

    revision = ONE

    def __init__(self) -> None:
        self.classes: list[str] = []

    def predict(self, calls: list[Any]) -> list[list[Any]]:
        self.classes += [call.traffic for call in calls]
        return [[None] * call.rows for call in calls]


@pytest.mark.parametrize(
    ("traffic", "headers", "counted"),
    [
        (None, {}, "production"),
        (None, {TRAFFIC_HEADER: "load_test"}, "load_test"),
        ("shadow", {}, "shadow"),
        ("shadow", {TRAFFIC_HEADER: "production"}, "shadow"),
        ("shadow", {TRAFFIC_HEADER: "what the original named"}, "shadow"),
    ],
)
def test_a_server_of_copies_counts_every_request_as_one(traffic: str | None, headers: dict, counted: str) -> None:
    predictor: Any = FakePredictor()
    deployed = Deployed(of(ONE), {ONE.revision: predictor}, True, 1, print, traffic)
    asyncio.run(deployed.answer({"origin": ["JFK"]}, headers, 0.0))
    deployed.close()
    assert predictor.classes == [counted]


def test_an_unknown_class_of_traffic_is_refused() -> None:
    predictor: Any = FakePredictor()
    deployed = Deployed(of(ONE), {ONE.revision: predictor}, True, 1, print)
    with pytest.raises(BadRequest, match="load_test"):
        asyncio.run(deployed.answer({"origin": ["JFK"]}, {TRAFFIC_HEADER: "prod"}, 0.0))
    deployed.close()
