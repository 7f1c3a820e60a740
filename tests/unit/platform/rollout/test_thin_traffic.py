"""When requests are replayed, and which: logged ones of production, or real ones out of the spine."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from throughline.events.schema import LOG_SCHEMA
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all
from throughline.rollout import thin_traffic
from throughline.rollout.thin_traffic import AT_ONCE, ENOUGH, is_thin, recent_requests
from throughline.usecase import get_usecase

USECASE = get_usecase("flight_delay")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("requests", "window", "dwell", "thin"),
    [(0, 5, 60, True), (10, 5, 60, True), (20, 5, 60, False), (100, 1, 0, False), (1, 5, 0, True)],
)
def test_traffic_is_thin_when_it_would_not_bring_the_samples_within_the_dwell_time(requests, window, dwell, thin):
    assert is_thin(requests, window * SECOND, dwell * SECOND, 200) is thin


def logged(number: int, **changes: Any) -> dict[str, Any]:
    request = {"origin": "JFK", "flight": number, "gone": True}
    row = dict.fromkeys(LOG_SCHEMA)
    return row | {
        "id": f"p{number}", "wall_time": NOW + number * SECOND, "row_key": f"k{number}", "role": "stable",
        "traffic": "production", "request": json.dumps(request), **changes,
    }  # fmt: skip


def write_log(settings: Settings, rows: list[dict[str, Any]]) -> None:
    path = settings.table_path(USECASE.name, "monitoring", "inference_log")
    replace_all(path, pl.DataFrame(rows, schema=LOG_SCHEMA))


@pytest.fixture
def spine(monkeypatch) -> list[datetime]:
    """Of 300 rows; the instants since which it was read."""
    asked: list[datetime] = []

    def between(settings, usecase, start, end):
        asked.append(start)
        return pl.DataFrame({"row": range(300)})

    monkeypatch.setattr(thin_traffic, "requests_between", between)
    monkeypatch.setattr(thin_traffic, "as_instances", lambda usecase, rows: rows.to_dicts())
    return asked


def test_different_logged_requests_of_production_are_drawn_with_the_fields_of_today(settings, spine):
    rows = [logged(n) for n in range(ENOUGH)]
    strange = [logged(n, traffic="load_test", id=f"x{n}") for n in range(1000, 1100)]
    write_log(settings, [*rows, *rows[:50], *strange])
    drawn, source = recent_requests(settings, USECASE)
    assert (len(drawn), source) == (AT_ONCE, "the inference log")
    flights = [request["flight"] for request in drawn]
    assert len(set(flights)) == AT_ONCE
    assert max(flights) < ENOUGH
    assert set(drawn[0]) == set(USECASE.request)
    assert spine == []


def test_with_few_logged_requests_they_are_made_of_the_newest_rows_of_the_spine(settings, spine):
    write_log(settings, [logged(n) for n in range(ENOUGH - 1)])
    drawn, source = recent_requests(settings, USECASE)
    assert (len(drawn), source) == (AT_ONCE, "the spine, as few requests were logged")
    assert "row" in drawn[0]
    assert len(spine) == 1


def test_without_a_log_and_without_rows_that_is_one_clear_line(settings, monkeypatch):
    monkeypatch.setattr(thin_traffic, "requests_between", lambda *_: pl.DataFrame())
    monkeypatch.setattr(thin_traffic, "as_instances", lambda *_: [])
    with pytest.raises(ThroughlineError, match="There is nothing to replay"):
        recent_requests(settings, USECASE)
