"""Rows pushed beside a table are joined with it point in time, by both engines: each from when it was known."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType

from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.pushed import PushedSource, with_pushed

START = datetime(2013, 11, 3, tzinfo=UTC)
HOUR = timedelta(hours=1)
TIME = pl.Datetime("us", "UTC")
TTL = 3 * HOUR


def rows(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ticks, and pushed rows of which some are late and some have a tick's event time; their values differ."""
    chance = random.Random(seed)
    made: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    for number in range(60):
        pushed = chance.random() < 0.5
        event = START + chance.randint(0, 20) * HOUR / 2
        known = event + pushed * chance.choice([0, 0, 1, 7]) * HOUR / 2
        row = {"place": chance.choice("ab"), "event_timestamp": event, "available_at": known, "value": float(number)}
        made[pushed][(row["place"], event, known)] = row
    return list(made[False].values()), list(made[True].values())


def expected(ticks: list[dict[str, Any]], pushed: list[dict[str, Any]], place: str, at: datetime) -> float | None:
    ranked = [((row["event_timestamp"], START - HOUR), row) for row in ticks]
    ranked += [((row["event_timestamp"], row["available_at"]), row) for row in pushed]
    seen = [
        (rank, row)
        for rank, row in ranked
        if row["place"] == place and max(row["event_timestamp"], row["available_at"]) <= at
    ]
    if not seen:
        return None
    _, row = max(seen, key=lambda one: one[0])
    return row["value"] if at - row["event_timestamp"] <= TTL else None


def write(path: Path, content: list[dict[str, Any]]) -> None:
    schema = {"place": pl.String, "event_timestamp": TIME, "available_at": TIME, "value": pl.Float64}
    write_deltalake(str(path), pl.DataFrame(content, schema=schema).to_arrow())


def source(home: Path, pushed: int | None) -> DeltaSource:
    plain = DeltaSource(name="t", path=str(home / "t"), version=0, timestamp_field="event_timestamp")
    return with_pushed(plain, pushed)


@pytest.mark.parametrize("seed", range(4))
def test_training_rows_see_the_newest_row_that_was_known(
    engine: dict[str, str], make_store: Any, tmp_path: Path, seed: int
) -> None:
    ticks, pushed = rows(seed)
    write(tmp_path / "t", ticks)
    write(tmp_path / "t_pushed", pushed)
    store = make_store(tmp_path, **engine)
    place = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
    schema = [Field(name="value", dtype=Float64)]
    view = FeatureView(name="v", entities=[place], schema=schema, source=source(tmp_path, 0), ttl=TTL)
    store.apply([place, view])
    wanted = [
        (each, START + half * HOUR / 2 + late) for each in "abz" for half in range(24) for late in (0 * HOUR, HOUR / 9)
    ]
    spine = pd.DataFrame(wanted, columns=["place", "event_timestamp"])
    got = store.get_historical_features(spine, ["v:value"], filter_by_created_timestamp=True).to_df()
    found = [None if pd.isna(value) else value for value in got["value"]]
    assert found == [expected(ticks, pushed, *each) for each in wanted]


def test_a_source_with_pushed_rows_comes_back_from_the_registry_and_its_versions_are_seen(tmp_path: Path) -> None:
    held = source(tmp_path, 3)
    again = PushedSource.from_proto(held.to_proto())
    assert isinstance(again, PushedSource)
    assert again == held
    assert (again.version, again.pushed_version, again.pushed.path) == (0, 3, str(tmp_path / "t_pushed"))
    assert held != source(tmp_path, 4)
    assert held != source(tmp_path, None)
    assert source(tmp_path, None) != held
    assert with_pushed(held, 9).pushed_version == 9
