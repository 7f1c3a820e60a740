"""The reader of Feast's online format against Feast's own reading: values, statuses, times, in both stores."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from feast import Entity, FeatureService, FeatureView, Field
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values
from feast.types import Array, Bool, Bytes, FeastType, Float32, Float64, Int32, Int64, Map, String, UnixTimestamp
from feast.value_type import ValueType
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from throughline.featurestore import store
from throughline.featurestore.materialise import materialise_until, online_writer
from throughline.featurestore.online import FeatureReader, StoredFeatures, look_up
from throughline.featurestore.online_format import DUMMY_KEY, VALUE_TYPES, load_views, open_rows
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import pin, replace_all
from throughline.usecase import RequestField, UseCase, get_usecase

Home = tuple[Settings, UseCase]
DEFINITIONS = "online_format_definitions"
NOW = datetime(2013, 11, 3, 6, tzinfo=UTC)
TTL = timedelta(hours=12)
INT32, INT64 = 2**31 - 1, 2**63 - 1
WHOLE = st.integers(-INT64 - 1, INT64)
DOUBLE = st.floats(allow_nan=False)
SECONDS = st.integers(0, 2**33)
SCALARS: dict[str, tuple[FeastType, st.SearchStrategy[Any]]] = {
    "bytes": (Bytes, st.binary(max_size=5)),
    "string": (String, st.text(max_size=5)),
    "int32": (Int32, st.integers(-INT32 - 1, INT32)),
    "int64": (Int64, WHOLE),
    "double": (Float64, DOUBLE),
    "float": (Float32, st.floats(width=32, allow_nan=False)),
    "bool": (Bool, st.booleans()),
    "timestamp": (UnixTimestamp, SECONDS),
}
TYPES = SCALARS | {f"{name}_list": (Array(kind), st.lists(one, max_size=3)) for name, (kind, one) in SCALARS.items()}
# Keys that collide in part, and that need escaping or all their bytes
PLACES = ("", "a", "ab", "é", "x" * 300)
GATES = (0, 1, -1, INT64, -INT64 - 1)
SLOTS = (0, 7, INT32, -INT32 - 1)


def build(source: Any) -> list[Any]:
    place = Entity(name="where", join_keys=["place"], value_type=ValueType.STRING)
    gate = Entity(name="gate", join_keys=["gate"], value_type=ValueType.INT64)
    slot = Entity(name="slot", join_keys=["slot"], value_type=ValueType.INT32)
    typed = FeatureView(
        name="typed",
        entities=[place],
        schema=[Field(name=name, dtype=kind) for name, (kind, _) in TYPES.items()],
        source=source("typed"),
    )
    keyed = FeatureView(
        name="keyed",
        entities=[slot, place, gate],
        schema=[Field(name="taken", dtype=Int64), Field(name="left_out", dtype=Int64)],
        source=source("keyed"),
        ttl=TTL,
    )
    common = FeatureView(name="common", entities=[], schema=[Field(name="all", dtype=Int64)], source=source("common"))
    return [
        place,
        gate,
        slot,
        typed,
        keyed,
        common,
        FeatureService(name="s", features=[typed, keyed[["taken"]], common]),
    ]


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, UseCase]]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    made = load_settings(home=tmp_path_factory.mktemp(request.param), online_store=url)
    usecase = declared("flight_delay")
    module = ModuleType(DEFINITIONS)
    module.build = build
    module.derive = lambda fields: {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, DEFINITIONS, module)
        register(made, usecase)
        yield made, usecase


def declared(name: str) -> UseCase:
    usecase = get_usecase(name)
    features = usecase.features.model_copy(
        update={"definitions": DEFINITIONS, "service": "s", "request_features": f"{DEFINITIONS}:derive"}
    )
    entities = {"where": "place", "gate": "gate", "slot": "slot"}
    integer = RequestField(type="integer", nullable=True)
    fields = {"place": RequestField(type="string", nullable=True), "gate": integer, "slot": integer}
    return usecase.model_copy(update={"name": "f", "features": features, "entities": entities, "request": fields})


def register(settings: Settings, usecase: UseCase) -> None:
    keys = {"place": "a", "gate": 1, "slot": 1, "event_timestamp": NOW, "available_at": NOW}
    own = {"typed": dict.fromkeys(TYPES, None), "keyed": {"taken": 1, "left_out": 1}, "common": {"all": 1}}
    for table, columns in own.items():
        replace_all(settings.table_path(usecase.name, "features", table), pl.DataFrame([keys | columns]))
    store.register(settings, usecase, [pin(settings, f"{usecase.name}/features/{table}") for table in own])


def instants() -> st.SearchStrategy[datetime]:
    """Around the edge of the ttl, to the microsecond."""
    return st.integers(-3, 3).map(lambda n: NOW - TTL + timedelta(microseconds=n)) | st.datetimes(
        datetime(1990, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)
    )


@st.composite
def contents(draw: st.DrawFn) -> dict[str, list[tuple[dict[str, Any], dict[str, Any], datetime]]]:
    """Per view, rows: keys, values, event time."""
    place, gate, slot = st.sampled_from(PLACES), st.sampled_from(GATES), st.sampled_from(SLOTS)
    values = st.fixed_dictionaries({name: st.none() | one for name, (_, one) in TYPES.items()})
    keyed = st.fixed_dictionaries({"slot": slot, "place": place, "gate": gate})
    numbers = st.fixed_dictionaries({"taken": st.none() | WHOLE, "left_out": WHOLE})
    return {
        "typed": draw(st.lists(st.tuples(st.fixed_dictionaries({"place": place}), values, instants()), max_size=4)),
        "keyed": draw(st.lists(st.tuples(keyed, numbers, instants()), max_size=6)),
        "common": draw(st.lists(st.tuples(st.just({DUMMY_KEY: ""}), st.just({"all": 3}), instants()), max_size=1)),
    }


def write(settings: Settings, usecase: UseCase, rows: dict[str, list[Any]]) -> None:
    with online_writer(settings, usecase) as writer:
        for view in writer.views:
            types = {field.name: field.dtype.to_value_type() for field in [*view.entity_columns, *view.features]}
            types[DUMMY_KEY] = ValueType.STRING

            def protos(values: dict[str, Any], types: dict[str, Any] = types) -> dict[str, Any]:
                return {name: python_values_to_proto_values([value], types[name])[0] for name, value in values.items()}

            data = [
                (EntityKey(join_keys=list(keys), entity_values=list(protos(keys).values())), protos(values), at, None)
                for keys, values, at in rows[view.name]
            ]
            writer.online.replace(writer.config, view, data)


def by_feast(settings: Settings, usecase: UseCase, entities: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    """Feature -> values, event times and presence of N entities, as Feast answers a request."""
    feast = store.open_store(settings, usecase)
    rows = [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]
    answer = feast.get_online_features(feast.get_feature_service("s"), rows).proto
    found = {}
    for name, result in zip(answer.metadata.feature_names.val, answer.results, strict=True):
        values = [getattr(value, kind) if (kind := value.WhichOneof("val")) else None for value in result.values]
        times = [stamp.ToDatetime(UTC) if stamp.seconds else None for stamp in result.event_timestamps]
        found[name] = ([list(v.val) if hasattr(v, "val") else v for v in values], times)
    return found


def by_us(settings: Settings, usecase: UseCase, entities: dict[str, list[Any]], ttl: bool) -> StoredFeatures:
    views = load_views(settings, usecase.name)
    read = [view if ttl else view.model_copy(update={"ttl": None}) for view in views]
    return look_up(open_rows(settings, usecase.name), read, entities, NOW)


@settings(max_examples=40, deadline=None, phases=[Phase.generate])
@given(rows=contents(), others=st.lists(st.tuples(*map(st.sampled_from, (PLACES, GATES, SLOTS))), max_size=3))
def test_every_value_time_and_missing_entity_is_as_feast_reads_it(
    home: Home, rows: dict[str, list[Any]], others: list[tuple[str, int, int]]
) -> None:
    write(*home, rows)
    wanted = [*others, *((keys["place"], keys["gate"], keys["slot"]) for keys, _, _ in rows["keyed"]), ("a", 0, 0)]
    wanted += [(keys["place"], 0, 0) for keys, _, _ in rows["typed"]]
    entities = dict(zip(("place", "gate", "slot"), map(list, zip(*wanted, strict=True)), strict=True))
    feast, ours = by_feast(*home, entities), by_us(*home, entities, ttl=False)
    views = {view.name: view for view in load_views(*(home[0], home[1].name))}
    assert [name for view in views.values() for name in view.features] == [*TYPES, "taken", "all"]
    for view in views.values():
        for name in view.features:
            values, times = feast[name]
            assert ours.values[name] == values, name
            assert ours.event_times[view.name] == times
            assert ours.there[view.name] == [time is not None for time in times]
    within = by_us(*home, entities, ttl=True)
    for n, time in enumerate(ours.event_times["keyed"]):
        expired = time is not None and time < NOW - TTL
        assert within.expired["keyed"][n] == expired
        assert within.values["taken"][n] == (None if expired else ours.values["taken"][n])
        assert within.event_times["keyed"][n] == (None if expired else time)


def test_a_missing_or_impossible_key_has_no_row(home: Home) -> None:
    row = ({"slot": 1, "place": "a", "gate": 1}, {"taken": 5, "left_out": 6}, NOW)
    write(*home, {"typed": [], "keyed": [row], "common": []})
    wanted = {"place": ["a", None, "a", "a", "a"], "gate": [1, 1, None, 1, 1], "slot": [1, 1, 1, None, 2**40]}
    read = FeatureReader(*home).read(wanted, NOW)
    assert read.column("taken") == [5, None, None, None, None]
    unknown = [f"unknown_entity:{name}" for name in ("where", "gate", "slot")]
    assert [[flag for flag in read.flags(n) if flag in unknown] for n in range(5)] == [[], *[unknown] * 4]


def test_the_row_of_a_view_without_entities_is_online_for_every_request(home: Home) -> None:
    materialise_until(*home, NOW)
    entities = {"place": ["a", "b"], "gate": [1, 2], "slot": [1, 1]}
    assert by_feast(*home, entities)["all"] == ([1, 1], [NOW, NOW])
    assert by_us(*home, entities, ttl=True).values["all"] == [1, 1]


def test_a_type_that_is_not_read_is_refused_when_it_is_registered(home: Home) -> None:
    view = copy.copy(store.open_store(*home).get_feature_view("common"))
    view.features = [Field(name="all", dtype=Map)]
    with pytest.raises(ThroughlineError, match="Feature all of common has type MAP, which cannot be read online"):
        store.online_view(view, ["all"])
    assert {kind.to_value_type().name for kind, _ in TYPES.values()} == VALUE_TYPES


def test_a_home_without_a_feature_store_names_what_to_materialise(tmp_path: Path) -> None:
    bare = load_settings(home=tmp_path)
    with pytest.raises(ThroughlineError, match=r"online_views\.json is missing: materialise f/features/feature_store"):
        load_views(bare, "f")
    with pytest.raises(ThroughlineError, match=r"online\.db is missing"):
        open_rows(bare, "f")
