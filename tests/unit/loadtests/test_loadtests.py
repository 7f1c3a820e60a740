"""A load test stays on this machine, sends real requests, and names the levels that were missed."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from loadtests.levels import Levels, Measured, missed
from loadtests.scenario import SAMPLE, instances, require_loopback
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all
from throughline.usecase import get_usecase
from throughline.usecase.requests import parse_instances

KEPT = Measured(requests=100, seconds=10, failed_share=0, p50_ms=5, p95_ms=20, p99_ms=30, events_lost=0)


@pytest.mark.parametrize("url", ["http://example.com", "http://10.0.0.1:8080", "http://localhost.example.com", "x"])
def test_only_this_machine_is_put_under_load(url):
    with pytest.raises(ThroughlineError, match="loopback"):
        require_loopback(url)
    require_loopback("http://127.0.0.1:8080")
    require_loopback("http://localhost:1")


def test_each_level_can_be_missed_and_an_unknown_figure_is_a_miss():
    levels = Levels()
    assert missed(levels, KEPT) == []
    for name, value in (("failed_share", 0.01), ("p50_ms", 26), ("p95_ms", 101), ("events_lost", 1)):
        (only,) = missed(levels, replace(KEPT, **{name: value}))
        assert only.startswith(name)
    assert missed(levels, replace(KEPT, p50_ms=math.nan))
    assert missed(levels, replace(KEPT, requests=0)) == ["no request was answered"]


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
