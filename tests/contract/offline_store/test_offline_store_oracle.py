"""Both engines give, through Feast, what looking at every row gives.

Hypothesis draws small worlds (a spine and a table); all worlds of a run are in one table and joined in one
query, as a query on Spark costs seconds however small. What a world shows when it fails is in the message.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from feast import Entity, FeatureView, Field
from feast.types import Int64
from feast.value_type import ValueType
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from throughline.featurestore.delta_source import DeltaSource

WORLDS = 80
MINUTE = timedelta(minutes=1)
TIME = pl.Datetime("us", "UTC")
ROWS = {"world": pl.Int64, "k1": pl.String, "k2": pl.Int32, "event_timestamp": TIME, "created": TIME, "value": pl.Int64}
SPINE = {"world": pl.Int64, "k1": pl.String, "k2": pl.Float64, "event_timestamp": TIME}
ENTITIES = {
    "world": Entity(name="world", join_keys=["world"], value_type=ValueType.INT64),
    "k1": Entity(name="k1", join_keys=["k1"], value_type=ValueType.STRING),
    "k2": Entity(name="k2", join_keys=["k2"], value_type=ValueType.INT32),
}
# name: keys, whether there is a created timestamp, ttl
VIEWS: dict[str, tuple[list[str], bool, timedelta | None]] = {
    "both": (["world", "k1", "k2"], True, None),
    "first": (["world", "k1"], True, 30 * MINUTE),
    "second": (["world", "k2"], True, timedelta(0)),
    "uncreated": (["world", "k1"], False, 90 * MINUTE),
    "all_of_a_world": (["world"], True, 60 * MINUTE),
    "everybody": ([], True, None),
}

# Around both changes of the clocks in New York; a millisecond after an edge is another side of it
starts = st.sampled_from([datetime(2013, 3, 10, 5, tzinfo=UTC), datetime(2013, 11, 3, 4, tzinfo=UTC)])
after = st.tuples(st.integers(0, 10), st.sampled_from([0, 0, 0, 1])).map(
    lambda drawn: drawn[0] * 30 * MINUTE + timedelta(milliseconds=drawn[1])
)
instants = st.builds(lambda start, late: start + late, starts, after)
keyed = {"k1": st.sampled_from(["a", "b", None]), "k2": st.sampled_from([1, 2, None])}
spine_rows = st.fixed_dictionaries({**keyed, "event_timestamp": st.none() | instants})
held_rows = st.fixed_dictionaries(
    {
        **keyed,
        "event_timestamp": st.none() | instants,
        "created": st.none() | instants,
        "value": st.none() | st.integers(0, 999),
    }
)
worlds = st.tuples(st.lists(spine_rows, max_size=6), st.lists(held_rows, max_size=10))


def oracle(entity: dict[str, Any], rows: list[dict[str, Any]], view: str, known_only: bool) -> set[int | None]:
    """The values that a spine row may get: of one row, or of several that are equal in every key."""
    keys, created, ttl = VIEWS[view]
    at, best = entity["event_timestamp"], None
    allowed: set[int | None] = {None}
    for row in rows:
        happened = row["event_timestamp"]
        if any(row[key] is None or entity[key] is None or row[key] != entity[key] for key in keys):
            continue
        if at is None or happened is None or happened > at or (ttl and at - happened > ttl):
            continue
        if known_only and created and (row["created"] is None or row["created"] > at):
            continue
        rank = (happened, (row["created"] or datetime.min.replace(tzinfo=UTC)) if created else None)
        if best is None or rank > best:
            best, allowed = rank, {row["value"]}
        elif rank == best:
            allowed.add(row["value"])
    return allowed


def draw(count: int) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    drawn: list[Any] = []

    @settings(max_examples=count, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(worlds)
    def collect(world: Any) -> None:
        drawn.append(world)

    collect()
    return drawn


@pytest.fixture(scope="module")
def drawn() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Spine and table of all worlds, each in a random order."""
    together = draw(WORLDS)
    spine = [{"world": n, **row} for n, (rows, _) in enumerate(together) for row in rows]
    held = [{"world": n, **row} for n, (_, rows) in enumerate(together) for row in rows]
    return pl.DataFrame(spine, schema=SPINE), pl.DataFrame(held, schema=ROWS)


@pytest.mark.parametrize(
    ("zone", "unit", "known_only"),
    [("UTC", "us", False), ("America/New_York", "ns", True), ("Australia/Lord_Howe", "ms", False)],
)
def test_every_value_is_one_that_looking_at_every_row_gives(
    make_store: Callable[..., Any],
    as_source: Callable[..., DeltaSource],
    engine: dict[str, str],
    drawn: tuple[pl.DataFrame, pl.DataFrame],
    tmp_path: Path,
    zone: str,
    unit: Any,
    known_only: bool,
) -> None:
    spine, held = drawn
    store = make_store(tmp_path, **engine)
    sources = {
        created: as_source(tmp_path / "held", held, name=f"created_{created}", **more)
        for created, more in ((True, {"created_timestamp_column": "created"}), (False, {}))
    }
    views = [
        FeatureView(
            name=name,
            entities=[ENTITIES[key] for key in keys],
            schema=[Field(name="value", dtype=Int64)],
            source=sources[created],
            ttl=ttl,
        )
        for name, (keys, created, ttl) in VIEWS.items()
    ]
    store.apply([*ENTITIES.values(), *views])
    entity_df = spine.to_pandas()
    entity_df["event_timestamp"] = entity_df["event_timestamp"].dt.tz_convert(zone).dt.as_unit(unit)
    got = store.get_historical_features(
        entity_df, [f"{name}:value" for name in VIEWS], full_feature_names=True, filter_by_created_timestamp=known_only
    ).to_df()

    pd.testing.assert_series_equal(got["k1"], spine.to_pandas()["k1"])
    rows = held.to_dicts()
    of_world = {n: [row for row in rows if row["world"] == n] for n in range(WORLDS)}
    for place, row in enumerate(spine.to_dicts()):
        for name in VIEWS:
            value = got.at[place, f"{name}__value"]
            seen = rows if name == "everybody" else of_world[row["world"]]
            expected = oracle(row, seen, name, known_only)
            assert (None if pd.isna(value) else int(value)) in expected, (name, row, seen)
