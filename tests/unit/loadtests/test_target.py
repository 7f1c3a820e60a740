"""A load test stays on this machine, sends real requests, and names their traffic class."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from loadtests.answers import BadAnswer, prediction_ids
from loadtests.target import SAMPLE, Target, instances, require_loopback
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all
from throughline.usecase import get_usecase
from throughline.usecase.requests import parse_instances


@pytest.mark.parametrize("url", ["http://example.com", "http://10.0.0.1:8080", "http://localhost.example.com", "x"])
def test_only_this_machine_is_put_under_load(url):
    with pytest.raises(ThroughlineError, match="loopback"):
        require_loopback(url)
    require_loopback("http://127.0.0.1:8080")
    require_loopback("http://localhost:1")


def test_requests_come_from_the_spine_table_and_before_it_exists_from_the_declaration(tmp_path):
    usecase, settings = get_usecase("flight_delay"), Settings(home=tmp_path)
    assert len(instances(settings, usecase)) == 1
    at = datetime(2013, 3, 1, 12, tzinfo=UTC)
    rows = pl.DataFrame(
        [
            {
                "origin": "JFK",
                "carrier": "B6",
                "dest": "BOS",
                "tailnum": None if number % 2 else f"N{number}",
                "flight": number,
                "scheduled_departure": at + timedelta(minutes=number),
                "scheduled_arrival": at + timedelta(minutes=number + 60),
                "label": 1,
            }
            for number in range(SAMPLE + 10)
        ]
    )
    replace_all(settings.table_path("flight_delay", "features", usecase.features.spine), rows)
    found = instances(settings, usecase)
    assert len(found) == SAMPLE
    assert parse_instances(usecase, found[:1000]).height == 1000


def test_bodies_hold_the_rows_asked_for_and_every_request_names_its_traffic_class(tmp_path):
    goal = Target(Settings(home=tmp_path), get_usecase("flight_delay"), "http://127.0.0.1:1", [{"n": 1}, {"n": 2}])
    first, second = itertools.islice(goal.bodies(3), 2)
    assert [row["n"] for body in (first, second) for row in json.loads(body)["instances"]] == [1, 2, 1, 2, 1, 2]
    assert goal.headers["X-Throughline-Traffic"] == "load_test"


def answer(*scores: object, ids: tuple[str, ...] = ("a", "b")) -> bytes:
    return json.dumps(
        {"predictions": [{"prediction_id": i, "score": s} for i, s in zip(ids, scores, strict=False)]}
    ).encode()


def test_an_answer_is_a_probability_per_row_each_with_an_id_of_its_own():
    assert prediction_ids(200, answer(0.0, 1.0), 2) == ("a", "b")
    for status, content, rows in (
        (503, answer(0.1, 0.2), 2),
        (200, answer(0.1), 2),
        (200, answer(0.1, 0.2), 1),
        (200, answer(0.1, 1.5), 2),
        (200, answer(0.1, None), 2),
        (200, answer(0.1, 0.2, ids=("a", "a")), 2),
        (200, answer(0.1, 0.2, ids=("a", "")), 2),
        (200, b'{"predictions": 1}', 1),
        (200, b"not JSON", 1),
        (200, b"\xff", 1),
    ):
        with pytest.raises(BadAnswer):
            prediction_ids(status, content, rows)
