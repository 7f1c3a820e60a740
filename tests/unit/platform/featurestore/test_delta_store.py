"""Through a real Feast store, offline and online features are the oracle's, at the pinned versions."""

from __future__ import annotations

import contextlib
import io
import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, RepoConfig
from feast.types import Float64
from feast.value_type import ValueType

from tests.support.request_columns import columns_of
from throughline.featurestore import store as feature_store
from throughline.featurestore.delta_store import DeltaSource
from throughline.featurestore.materialise import materialise_until, online_writer
from throughline.featurestore.online import FeatureReader
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase, get_usecase

START = datetime(2013, 11, 3, tzinfo=UTC)  # the day the clocks change in New York
HOUR = timedelta(hours=1)
TIME = pl.Datetime("us", "UTC")


def repository(home: Path) -> FeatureStore:
    return FeatureStore(
        config=RepoConfig(
            project="p",
            provider="local",
            registry={"registry_type": "file", "path": str(home / "registry.db"), "cache_ttl_seconds": 0},
            online_store={"type": "sqlite", "path": str(home / "online.db")},
            offline_store={"type": "throughline.featurestore.delta_store.DeltaOfflineStore"},
            materialization={"pull_latest_features": True},
            entity_key_serialization_version=3,
        )
    )


def write(path: Path, frame: pl.DataFrame) -> int:
    """The next version of the table."""
    from deltalake import DeltaTable

    write_deltalake(str(path), frame.to_arrow(), mode="overwrite", schema_mode="overwrite")
    return DeltaTable(str(path)).version()


def quietly(work: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return work()


def newest(rows: pl.DataFrame, entity: dict[str, Any], at: datetime, ttl: timedelta | None = None) -> float | None:
    """The oracle: value of the row that may be used, by looking at every row."""
    best: tuple[Any, ...] | None = None
    for place, row in enumerate(rows.to_dicts()):
        matches = all(entity[key] is not None and row[key] == entity[key] for key in entity)
        if matches and row["at"] <= at and not (ttl and at - row["at"] > ttl):
            rank = (row["at"], row["created"] or datetime(1, 1, 1, tzinfo=UTC), place)
            best = max(best or (rank, row["value"]), (rank, row["value"]), key=lambda b: b[0])
    return best[1] if best else None


def random_rows(seed: int, count: int, places: str = "abc") -> pl.DataFrame:
    """Few instants, so that there are ties; half of the instants are on ttl edges of each other."""
    chance = random.Random(seed)
    return pl.DataFrame(
        [
            {
                "place": chance.choice(places),
                "number": chance.randint(0, 2),
                "at": START + chance.randint(0, 20) * HOUR / 2,
                "created": START + chance.randint(0, 9999) * HOUR / 60,
                "value": chance.choice([None, float(n)]),
            }
            for n in range(count)
        ],
        schema={"place": pl.String, "number": pl.Int32, "at": TIME, "created": TIME, "value": pl.Float64},
    )


PLACE = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
NUMBER = Entity(name="number", join_keys=["number"], value_type=ValueType.INT64)


def view(name: str, source: DeltaSource, entities: list[Entity], feature: str, **more: Any) -> FeatureView:
    return FeatureView(name=name, entities=entities, schema=[Field(name=feature, dtype=Float64)], source=source, **more)


@pytest.fixture(scope="module")
def rows() -> dict[str, pl.DataFrame]:
    return {"one": random_rows(1, 60), "two": random_rows(2, 90), "none": random_rows(3, 12)}


@pytest.fixture(scope="module")
def several(rows: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Three views: one key and a ttl; two keys and columns of other names; no key at all."""
    home = tmp_path_factory.mktemp("several")
    for name, frame in rows.items():
        write(home / name, frame)
    write(home / "two", rows["two"].rename({"number": "NR", "at": "TS", "created": "CR", "value": "RAW"}))
    timed = {"timestamp_field": "at", "created_timestamp_column": "created"}
    sources = {
        "one": DeltaSource(name="one", path=str(home / "one"), version=0, **timed),
        "two": DeltaSource(
            name="two",
            path=str(home / "two"),
            version=1,
            field_mapping={"NR": "number", "TS": "at", "CR": "created", "RAW": "second"},
            **timed,
        ),
        "none": DeltaSource(name="none", path=str(home / "none"), version=0, **timed),
    }
    store = repository(home)
    store.apply(
        [
            PLACE,
            NUMBER,
            view("one", sources["one"], [PLACE], "value", ttl=2 * HOUR),
            view("two", sources["two"], [PLACE, NUMBER], "second"),
            view("none", sources["none"], [], "value"),
        ]
    )
    return store


def spine(count: int = 40) -> pd.DataFrame:
    chance = random.Random(9)
    return pd.DataFrame(
        {
            "place": [chance.choice(["a", "b", "unknown", None]) for _ in range(count)],
            "number": [chance.choice([0, 1, 2, 77]) for _ in range(count)],
            "event_timestamp": [START + chance.randint(-2, 22) * HOUR / 2 for _ in range(count)],
        }
    )


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", None])
def test_historical_features_are_those_of_the_oracle_in_the_callers_order(
    several: FeatureStore, rows: dict[str, pl.DataFrame], zone: str | None
) -> None:
    wanted = spine()
    at = wanted["event_timestamp"]
    wanted["event_timestamp"] = at.dt.tz_convert(zone) if zone else at.dt.tz_localize(None)  # naive counts as UTC
    got = several.get_historical_features(
        wanted, ["one:value", "two:second", "none:value"], full_feature_names=True
    ).to_df()
    assert got["place"].to_list() == wanted["place"].to_list()
    assert got["event_timestamp"].to_list() == spine()["event_timestamp"].to_list()
    for number, row in enumerate(spine().to_dict("records")):
        at = row["event_timestamp"].to_pydatetime()
        expected = {
            "one__value": newest(rows["one"], {"place": row["place"]}, at, 2 * HOUR),
            "two__second": newest(rows["two"], {"place": row["place"], "number": row["number"]}, at),
            "none__value": newest(rows["none"], {}, at),
        }
        found = got.loc[number, list(expected)]
        assert [None if pd.isna(value) else value for value in found] == list(expected.values()), row


def test_online_features_are_those_of_the_oracle_at_the_end_of_the_window(
    several: FeatureStore, rows: dict[str, pl.DataFrame]
) -> None:
    end = START + 7 * HOUR
    features = ["one:value", "two:second", "none:value"]
    quietly(lambda: several.materialize(START - HOUR, end))
    wanted = [{"place": place, "number": number} for place in "abcz" for number in (0, 1, 2)]
    got = several.get_online_features(features, wanted, full_feature_names=True).to_dict()
    for number, row in enumerate(wanted):
        assert got["two__second"][number] == newest(rows["two"], row, end)
        assert got["none__value"][number] == newest(rows["none"], {}, end)
        # Feast ignores the ttl when it reads online: a view with one is served older values than it is trained on
        assert got["one__value"][number] == newest(rows["one"], {"place": row["place"]}, end)


def test_a_join_key_that_is_missing_is_named(several: FeatureStore) -> None:
    with pytest.raises(ThroughlineError, match="lack the join key number: add"):
        several.get_historical_features(spine().drop(columns="number"), ["two:second"])


def test_a_taken_name_is_not_overwritten(several: FeatureStore) -> None:
    with pytest.raises(ThroughlineError, match="already have value"):
        several.get_historical_features(spine().assign(value=1.0), ["one:value"]).to_df()


def test_a_view_may_be_joined_under_other_keys(several: FeatureStore, rows: dict[str, pl.DataFrame]) -> None:
    elsewhere = several.get_feature_view("one").with_name("elsewhere").with_join_key_map({"place": "target"})
    several.apply([FeatureService(name="aliased", features=[elsewhere])])
    wanted = pd.DataFrame({"place": ["a"], "target": ["b"], "event_timestamp": [START + 5 * HOUR]})
    got = several.get_historical_features(wanted, several.get_feature_service("aliased")).to_df()
    expected = newest(rows["one"], {"place": "b"}, START + 5 * HOUR, 2 * HOUR)
    assert [None if pd.isna(v) else v for v in got["value"]] == [expected]


# Versions


def values(value: float, at: datetime = START) -> pl.DataFrame:
    row = {"place": "a", "at": at, "created": at, "value": value}
    return pl.DataFrame([row], schema={"place": pl.String, "at": TIME, "created": TIME, "value": pl.Float64})


def pinned(home: Path, version: int) -> FeatureView:
    source = DeltaSource(name="t", path=str(home / "t"), version=version, timestamp_field="at")
    return view("v", source, [PLACE], "value")


def value_of(store: FeatureStore) -> float:
    wanted = pd.DataFrame({"place": ["a"], "event_timestamp": [START + HOUR]})
    return store.get_historical_features(wanted, ["v:value"]).to_df()["value"][0]


def test_a_newer_version_is_seen_when_it_is_registered_and_not_before(tmp_path: Path) -> None:
    store = repository(tmp_path)
    write(tmp_path / "t", values(1.0))
    store.apply([PLACE, pinned(tmp_path, 0)])
    write(tmp_path / "t", values(2.0))
    assert value_of(store) == 1.0
    # nothing but the version changes, which Feast must notice
    store.apply([PLACE, pinned(tmp_path, 1)])
    assert value_of(store) == 2.0
    assert repository(tmp_path).get_feature_view("v").batch_source.version == 1
    quietly(lambda: store.materialize(START, START + HOUR))
    assert store.get_online_features(["v:value"], [{"place": "a"}]).to_dict()["value"] == [2.0]
    # and back
    store.apply([PLACE, pinned(tmp_path, 0)])
    assert value_of(store) == 1.0


def test_a_source_comes_back_from_the_registry_as_it_was() -> None:
    source = DeltaSource(
        name="t",
        path="/somewhere/t",
        version=7,
        timestamp_field="at",
        created_timestamp_column="created",
        field_mapping={"A": "b"},
        description="d",
        tags={"team": "x"},
        owner="o",
    )
    again = DeltaSource.from_proto(source.to_proto())
    assert again == source
    assert (again.path, again.version, again.tags) == ("/somewhere/t", 7, {"team": "x", "delta_version": "7"})
    assert "VERSION AS OF 7" in again.get_table_query_string()
    for changed in ({"version": 8}, {"path": "/elsewhere/t"}):
        options = {"name": "t", "path": "/somewhere/t", "version": 7, "timestamp_field": "at", **changed}
        assert DeltaSource(**options) != DeltaSource(**{**options, "path": "/somewhere/t", "version": 7})


def test_a_source_without_its_time_column_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t", values(1.0))
    config = repository(tmp_path).config
    DeltaSource(name="t", path=str(tmp_path / "t"), version=0, timestamp_field="at").validate(config)
    mapped = {"timestamp_field": "happened", "field_mapping": {"at": "happened"}}
    DeltaSource(name="t", path=str(tmp_path / "t"), version=0, **mapped).validate(config)
    with pytest.raises(ThroughlineError, match="no column happened"):
        DeltaSource(name="t", path=str(tmp_path / "t"), version=0, timestamp_field="happened").validate(config)


# The use case's own store: offline and online agree, tick by tick

# view -> the keys of the entities that have ticks
VIEWS: dict[str, dict[str, list[Any]]] = {
    "origin_ticks": {"origin": ["JFK", "LGA"]},
    "carrier_ticks": {"carrier": ["B6", "UA"]},
    "station_ticks": {"origin": ["JFK", "LGA"], "carrier": ["B6", "UA"]},
    "destination_ticks": {"dest": ["BOS", "MIA"]},
    "route_ticks": {"origin": ["JFK", "LGA"], "dest": ["BOS", "MIA"]},
    "flight_ticks": {"carrier": ["B6", "UA"], "flight": [0, 1, 2], "origin": ["JFK", "LGA"]},
    "aircraft_ticks": {"tailnum": ["N1", "N2", "N3"]},
    "weather_ticks": {"origin": ["JFK", "LGA"]},
}


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def tick_tables(settings: Settings, usecase: UseCase, seed: int, hours: int = 12) -> list[TableReference]:
    """A row for some of the hours of each entity, with some values missing."""
    from features.flight_delay.definitions import build

    chance = random.Random(seed)
    built = build(lambda table: DeltaSource(name=table, path="", version=0, timestamp_field="event_timestamp"))
    pins = []
    for one in built:
        if not isinstance(one, FeatureView):
            continue
        known = VIEWS[one.name]
        names = [field.name for field in one.features]
        frame = pl.DataFrame(
            [
                {**dict(zip(known, entity, strict=True)), "event_timestamp": START + hour * HOUR}
                | {name: chance.choice([None, round(chance.uniform(-9, 99), 3)]) for name in names}
                for entity in itertools.product(*known.values())
                for hour in range(hours)
                if chance.random() < 0.5
            ],
            schema={
                **{key: pl.Int64 if key == "flight" else pl.String for key in known},
                "event_timestamp": TIME,
                **dict.fromkeys(names, pl.Float64),
            },
        )
        table = f"{usecase.name}/features/{one.name}"
        pins.append(TableReference(table, write(settings.lakehouse / table, frame)))
    return pins


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, usecase: UseCase) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    feature_store.register(settings, usecase, tick_tables(settings, usecase, 1))
    return settings


def requests(*changes: dict[str, Any]) -> pl.DataFrame:
    wanted = {
        "origin": "JFK",
        "carrier": "B6",
        "dest": "BOS",
        "tailnum": "N1",
        "flight": 1,
        "scheduled_departure": START + 9 * HOUR,
        "scheduled_arrival": START + 11 * HOUR,
    }
    times = {"scheduled_departure": TIME, "scheduled_arrival": TIME, "tailnum": pl.String}
    return pl.DataFrame([{**wanted, **change} for change in changes], schema_overrides=times)


EVERYBODY = [
    {"origin": origin, "carrier": carrier, "dest": dest, "tailnum": tail, "flight": number}
    for number, (origin, carrier, dest, tail) in enumerate(
        [("JFK", "B6", "BOS", "N1"), ("LGA", "UA", "MIA", "N2"), ("JFK", "UA", "BOS", "N3"), ("LGA", "B6", "XXX", None)]
    )
]


def offline(home: Settings, usecase: UseCase, wanted: pl.DataFrame, at: datetime) -> pl.DataFrame:
    joined = feature_store.historical_features(
        home, usecase, wanted.with_columns(prediction_time=at), "prediction_time"
    )
    return joined.select([name for name in joined.columns if name not in (*wanted.columns, "prediction_time")])


def test_online_equals_offline_at_every_tick_and_between_ticks(home: Settings, usecase: UseCase) -> None:
    wanted = requests(*EVERYBODY)
    compared = 0
    for at in (START + hours * HOUR for hours in (0, 0.5, 1, 3, 4, 7.25, 11, 15)):
        materialise_until(home, usecase, at)
        expected = offline(home, usecase, wanted, at)
        got = FeatureReader(home, usecase).read(columns_of(wanted)).frame.select(expected.columns)
        assert got.cast(pl.Float64).equals(expected.cast(pl.Float64)), at
        compared += expected.height * expected.width - sum(expected.null_count().row(0))
    assert compared > 200


def test_a_window_written_twice_or_overlapping_leaves_the_same(tmp_path: Path, usecase: UseCase) -> None:
    settings = Settings(home=tmp_path)
    feature_store.register(settings, usecase, tick_tables(settings, usecase, 2))
    wanted = requests(*EVERYBODY)
    materialise_until(settings, usecase, START + 6 * HOUR)
    once = FeatureReader(settings, usecase).read(columns_of(wanted))
    for start in (START + 6 * HOUR, START + 2 * HOUR, None):
        with online_writer(settings, usecase) as writer:
            for view in writer.views:
                writer.write(view, start, START + 6 * HOUR)
        again = FeatureReader(settings, usecase).read(columns_of(wanted))
        assert again.frame.equals(once.frame)
        assert [again.event_times(n) for n in range(again.rows)] == [once.event_times(n) for n in range(once.rows)]


def test_materialising_prints_nothing(home: Settings, usecase: UseCase, capsys: pytest.CaptureFixture[str]) -> None:
    materialise_until(home, usecase, START + HOUR)
    assert capsys.readouterr().out == ""


def test_history_keeps_the_callers_rows_columns_and_instants(home: Settings, usecase: UseCase) -> None:
    wanted = requests(*EVERYBODY).with_columns(prediction_time=START + 5 * HOUR)
    joined = feature_store.historical_features(home, usecase, wanted, "prediction_time")
    assert joined.select(wanted.columns).equals(wanted)
    shuffled = feature_store.historical_features(home, usecase, wanted.reverse(), "prediction_time")
    assert shuffled.reverse().equals(joined)


def test_a_time_without_a_zone_is_refused_and_not_taken_for_utc(home: Settings, usecase: UseCase) -> None:
    naive = (START + 5 * HOUR).replace(tzinfo=None)
    with pytest.raises(ThroughlineError, match="event_timestamp of the entity rows holds no instants"):
        offline(home, usecase, requests({}), naive)


def test_a_setting_moves_the_join_to_spark(home: Settings, usecase: UseCase) -> None:
    on_spark = home.model_copy(update={"offline_engine": "spark", "spark_remote": "sc://somewhere:15002"})
    offline_store = feature_store.open_store(on_spark, usecase).config.offline_store
    assert (offline_store.engine, offline_store.spark_remote) == ("spark", "sc://somewhere:15002")
    assert feature_store.open_store(home, usecase).config.offline_store.engine == "polars"


def test_a_spine_whose_aircraft_are_all_unknown_is_joined(home: Settings, usecase: UseCase) -> None:
    got = offline(home, usecase, requests({"tailnum": None}, {"tailnum": None}), START + 11 * HOUR)
    assert got["aircraft_seats"].to_list() == [None, None]
    assert got["origin_departures_2h"].null_count() in (0, 2)


def test_a_source_without_a_pin_is_refused(tmp_path: Path, usecase: UseCase) -> None:
    settings = Settings(home=tmp_path)
    pins = [pin for pin in tick_tables(settings, usecase, 3) if not pin.table.endswith("weather_ticks")]
    with pytest.raises(ThroughlineError, match="weather_ticks has no pinned version"):
        feature_store.register(settings, usecase, pins)


# Reading


@pytest.fixture(scope="module")
def reader(home: Settings, usecase: UseCase) -> FeatureReader:
    materialise_until(home, usecase, START + 11 * HOUR)
    return FeatureReader(home, usecase)


def test_a_batch_is_answered_in_its_order_as_one_by_one(reader: FeatureReader) -> None:
    wanted = requests(*EVERYBODY, *EVERYBODY[::-1])
    whole = reader.read(columns_of(wanted))
    for n in range(wanted.height):
        single = reader.read(columns_of(wanted[n]))
        assert single.frame.to_dicts() == whole.frame[n].to_dicts()
        assert single.flags(0) == whole.flags(n)
        assert single.event_times(0) == whole.event_times(n)


def test_an_unknown_entity_is_named_and_has_no_values(reader: FeatureReader) -> None:
    rows = requests({}, {"tailnum": "N999"}, {"carrier": "ZZ", "dest": "NOWHERE"}, {"tailnum": None})
    read = reader.read(columns_of(rows))
    unknown = [[flag.partition(":")[2] for flag in read.flags(n) if flag.startswith("unknown_")] for n in range(4)]
    assert unknown == [[], ["aircraft"], ["carrier", "destination", "flight"], ["aircraft"]]
    assert read.column("carrier_delay_3h")[2] is None
    assert read.event_times(1)["aircraft_ticks"] is None
    assert read.event_times(1)["origin_ticks"] is not None


def test_a_known_entity_whose_values_are_all_missing_is_not_unknown(tmp_path: Path, usecase: UseCase) -> None:
    settings = Settings(home=tmp_path)
    pins = tick_tables(settings, usecase, 4)
    path = settings.lakehouse / usecase.name / "features" / "aircraft_ticks"
    empty = pl.read_delta(str(path), version=0).head(1)
    empty = empty.with_columns(pl.exclude("tailnum", "event_timestamp") * None)
    pins = [pin for pin in pins if not pin.table.endswith("aircraft_ticks")]
    pins.append(TableReference(f"{usecase.name}/features/aircraft_ticks", write(path, empty)))
    feature_store.register(settings, usecase, pins)
    materialise_until(settings, usecase, START + 12 * HOUR)
    read = FeatureReader(settings, usecase).read(columns_of(requests({"tailnum": empty["tailnum"][0]})))
    assert "unknown_entity:aircraft" not in read.flags(0)
    assert read.event_times(0)["aircraft_ticks"] == empty["event_timestamp"][0]
    assert read.column("aircraft_seats") == [None]


def test_values_come_with_the_instant_of_the_row_they_were_read_from(
    home: Settings, usecase: UseCase, reader: FeatureReader
) -> None:
    read = reader.read(columns_of(requests({})))
    for name, known in VIEWS.items():
        rows = pl.read_delta(str(home.lakehouse / usecase.name / "features" / name), version=0)
        wanted = requests({}).row(0, named=True)
        mine = [pl.col(key) == wanted[key] for key in known]
        used = rows.filter(*mine, pl.col("event_timestamp") <= START + 11 * HOUR)
        assert read.event_times(0)[name] == used["event_timestamp"].max()


def test_request_time_features_come_along_and_the_request_stays(reader: FeatureReader) -> None:
    wanted = requests({}, {"flight": 2})
    values = reader.read(columns_of(wanted)).frame
    assert values.select(wanted.columns).equals(wanted)
    assert values["block_minutes"].to_list() == [120.0, 120.0]


def test_a_reload_reads_the_definitions_registered_since(tmp_path: Path, usecase: UseCase) -> None:
    settings = Settings(home=tmp_path)
    feature_store.register(settings, usecase, tick_tables(settings, usecase, 5))
    materialise_until(settings, usecase, START + 11 * HOUR)
    reader = FeatureReader(settings, usecase)
    before = reader.read(columns_of(requests({}))).frame
    feature_store.register(settings, usecase, tick_tables(settings, usecase, 6))
    materialise_until(settings, usecase, START + 11 * HOUR)
    reader.reload()
    after = reader.read(columns_of(requests({}))).frame
    assert not after.equals(before)
    assert after.equals(FeatureReader(settings, usecase).read(columns_of(requests({}))).frame)
