"""The graph shows the source of each column, and makes the profile at night."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from dagster import AssetKey, AssetSpec, Definitions, TableColumnLineage, TableSchema, materialize
from feast import FeatureView

from assets import catalogue as catalogue_assets
from assets import columns
from assets.columns import held_columns, lineage_metadata, model_lineage
from assets.definitions import throughline as build
from assets.features import feature_assets
from assets.resources import RecordIOManager
from features.flight_delay import definitions as feast_definitions
from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.layout import EVENT_TIME
from throughline.featurestore.lineage import Upstream
from throughline.featurestore.profile_page import page_of
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import replace_all
from throughline.records import FeatureRecord, FeatureStoreRecord, FeatureViewRecord
from throughline.records.store import load_record, save_record
from throughline.usecase import UseCase, get_usecase

LINEAGE, SCHEMA = "dagster/column_lineage", "dagster/column_schema"


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(home=tmp_path_factory.mktemp("home"), port_base=1024)


@pytest.fixture(scope="module")
def definitions(home: Settings) -> Definitions:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THROUGHLINE_HOME", str(home.home))
        return build()


def columns_of(definitions: Definitions, table: str) -> dict[str, set[str]]:
    node = definitions.resolve_asset_graph().get(AssetKey(["flight_delay", "features", table]))
    lineage = node.metadata[LINEAGE]
    assert isinstance(lineage, TableColumnLineage)
    return {
        column: {f"{'/'.join(dep.asset_key.path[1:])}.{dep.column_name}" for dep in deps}
        for column, deps in lineage.deps_by_column.items()
    }


def test_window_features_come_from_what_is_averaged_its_entity_and_when_it_was_known(definitions: Definitions) -> None:
    found = columns_of(definitions, "aircraft_ticks")
    averaged = {f"raw/flight_departures.{name}" for name in ("dep_delay", "tailnum", "available_at")}
    assert found["aircraft_delay_12h"] == found["aircraft_delay_168h"] == averaged
    assert found["aircraft_departures_168h"] == averaged - {"raw/flight_departures.dep_delay"}
    assert found["ingestion_run_id"] == set()


def test_what_is_overdue_comes_from_what_was_planned_and_what_has_left(definitions: Definitions) -> None:
    planned_and_gone = {"raw/flight_schedules.scheduled_departure", "raw/flight_departures.available_at"}
    assert columns_of(definitions, "origin_ticks")["origin_overdue_5h"] == planned_and_gone


def test_registers_weather_and_labels_are_traced_too(definitions: Definitions) -> None:
    assert columns_of(definitions, "aircraft_ticks")["aircraft_seats"] == {"raw/planes.seats"}
    assert columns_of(definitions, "weather_ticks")["weather_wind_speed"] == {"raw/weather.wind_speed"}
    assert columns_of(definitions, "labelled_flights")["label"] == {"raw/flight_arrivals.arr_delay"}


def test_every_traced_column_is_one_that_its_raw_table_has(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    held = {
        f"raw/{key.path[2]}.{column.name}"
        for key in graph.get_all_asset_keys()
        if key.path[1] == "raw"
        for column in graph.get(key).metadata[SCHEMA].columns
    } | {f"raw/{name}.day" for name in get_usecase("flight_delay").sources.tables}
    tables = [key.path[2] for key in graph.get_all_asset_keys() if LINEAGE in graph.get(key).metadata]
    assert len(tables) == 9
    for table in tables:
        assert set().union(*columns_of(definitions, table).values()) <= held, table


def test_a_raw_column_says_what_is_expected_of_it(definitions: Definitions) -> None:
    node = definitions.resolve_asset_graph().get(AssetKey(["flight_delay", "raw", "weather"]))
    schema = node.metadata[SCHEMA]
    assert isinstance(schema, TableSchema)
    wind = next(column for column in schema.columns if column.name == "wind_speed")
    assert wind.type == "number"
    assert wind.constraints.other == ["at most 10% null", "≥ 0", "≤ 250"]


GOOD = "select temp as t from flight_delay_raw.weather VERSION AS OF 0"
LINEAGE_OF_GOOD = {"a": {"t": [Upstream("weather", "temp")]}}


def manifest_of(usecase: UseCase, **models: str) -> dict:
    nodes = [
        {"name": name, "resource_type": "model", "fqn": ["p", usecase.name, name], "compiled_code": sql}
        for name, sql in models.items()
    ]
    return {"nodes": {f"model.{node['name']}": node for node in nodes}}


def test_a_model_that_cannot_be_read_does_not_stop_the_graph(usecase: UseCase, tmp_path: Path) -> None:
    manifest = manifest_of(usecase, a=GOOD, b="select nope from flight_delay_raw.weather")
    assert model_lineage(load_settings(home=tmp_path), usecase, manifest) == LINEAGE_OF_GOOD
    assert lineage_metadata(usecase, {})[LINEAGE].deps_by_column == {}


def test_sql_that_was_read_before_is_not_read_again(usecase: UseCase, tmp_path: Path, monkeypatch) -> None:
    settings = load_settings(home=tmp_path)
    assert model_lineage(settings, usecase, manifest_of(usecase, a=GOOD)) == LINEAGE_OF_GOOD
    with monkeypatch.context() as patch:
        patch.setattr(columns, "column_lineage", lambda *_: pytest.fail("the SQL was read again"))
        assert model_lineage(settings, usecase, manifest_of(usecase, a=GOOD)) == LINEAGE_OF_GOOD
    other = manifest_of(usecase, a=GOOD.replace("temp as", "wind_speed as"))
    assert model_lineage(settings, usecase, other) == {"a": {"t": [Upstream("weather", "wind_speed")]}}


def test_columns_are_shown_as_they_stand_with_where_they_come_from(settings: Settings) -> None:
    version = replace_all(settings.table_path("u", "features", "t"), pl.DataFrame({"origin": ["JFK"], "delay": [1.0]}))
    pinned = TableReference("u/features/t", version)
    columns = held_columns(settings, pinned, {"delay": "Mean delay."}, {"delay": [Upstream("departures", "dep_delay")]})
    assert [(c.name, c.type, c.description) for c in columns[SCHEMA].columns] == [
        ("origin", "string", None),
        ("delay", "double", "Mean delay. ← departures.dep_delay"),
    ]


def test_bringing_a_day_does_not_wait_for_the_profile(definitions: Definitions, usecase: UseCase) -> None:
    profile = catalogue_assets.profile_key(usecase)
    repository = definitions.get_repository_def()
    jobs = {job.name: set(job.asset_layer.executable_asset_keys) for job in repository.get_all_jobs()}
    assert jobs["flight_delay_profile"] == {profile}
    for name in ("flight_delay_ingest", "flight_delay_features"):
        assert profile not in jobs[name]
        assert AssetKey(["flight_delay", "features", "feature_store"]) in jobs[name]


def test_the_profile_writes_a_page_per_table_and_lists_the_features(settings: Settings, usecase: UseCase) -> None:
    now = usecase.clock_start(settings)
    rows = pl.DataFrame({EVENT_TIME: [now - timedelta(hours=1)], "day": [date(2013, 3, 31)], "delay": [3.0]})
    tables = [TableReference(f"flight_delay/features/{name}", 0) for name in ("ticks", "spine")]
    for table in tables:
        replace_all(settings.lakehouse / table.table, rows)
    feature = FeatureRecord(
        name="delay", type="Float64", description="Mean delay.", tags={}, services=[], upstream=["departures.dep_delay"]
    )
    view = FeatureViewRecord(
        name="ticks",
        description="d",
        owner="o",
        tags={},
        entities=["origin"],
        table=tables[0],
        features=[feature],
    )
    record = FeatureStoreRecord(
        usecase="flight_delay",
        as_of=datetime(2013, 4, 1, tzinfo=UTC),
        sources=tables[:1],
        spine=tables[1],
        views=[view],
    )
    save_record(settings, ("flight_delay", "features", "feature_store"), record)
    done = materialize(
        [
            *catalogue_assets.catalogue_assets(usecase).assets,
            AssetSpec(["flight_delay", "features", "feature_store"]).with_io_manager_key("io_manager"),
        ],
        resources={"settings": settings, "io_manager": RecordIOManager(settings)},
    )
    assert done.success
    (event,) = done.asset_materializations_for_node("flight_delay__features__profile")
    (listed,) = event.metadata["features"].records
    assert listed.data["feature"] == "delay"
    assert (listed.data["models"], listed.data["reads"]) == ("unknown", 0)
    for table in tables:
        page = page_of(settings, table)
        assert page.exists()
        assert event.metadata[table.table.rpartition("/")[2]].value == str(page)


def test_registering_records_what_is_registered_and_warns_of_a_deprecated_feature_in_use(
    home: Settings, usecase: UseCase, definitions: Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the real registry: descriptions, tags and the service are what Feast gives back."""
    unit, description = feast_definitions._VIEWS["weather_ticks"][2]["weather_temp"]
    for view in feast_definitions.build(lambda table: DeltaSource(name=table, path="", version=0, timestamp_field="t")):
        if isinstance(view, FeatureView):
            keys = {usecase.entities[entity]: [7 if entity == "flight" else "x"] for entity in view.entities}
            rows = pl.DataFrame({**keys, EVENT_TIME: [datetime(2013, 3, 31, tzinfo=UTC)]})
            rows = rows.with_columns(pl.lit(1.0).alias(feature.name) for feature in view.features)
            replace_all(home.table_path("flight_delay", "features", view.name), rows)
    replace_all(home.table_path("flight_delay", "features", usecase.features.spine), rows)
    build_plain = feast_definitions.build

    def with_a_deprecated_feature(source):
        objects = build_plain(source)
        (weather,) = [each for each in objects if each.name == "weather_ticks"]
        (temp,) = [each for each in weather.features if each.name == "weather_temp"]
        temp.tags.update({"deprecated": "a thermometer in the sun", "replaced_by": "weather_dewpoint"})
        return objects

    monkeypatch.setattr(feast_definitions, "build", with_a_deprecated_feature)
    (registering,) = [each for each in feature_assets(usecase, home).assets if len(each.keys) == 1]
    resources = {"settings": home, "io_manager": RecordIOManager(home)}
    done = materialize([registering], resources=resources)
    record = load_record(home, ("flight_delay", "features", "feature_store"), FeatureStoreRecord)
    (weather,) = [view for view in record.views if view.name == "weather_ticks"]
    (temp,) = [one for one in weather.features if one.name == "weather_temp"]
    assert (temp.description, temp.tags["unit"]) == (description, unit)
    assert (temp.services, temp.upstream) == (["flight_delay_v1"], ["weather.temp"])
    assert (weather.description, weather.owner) == ("The newest hourly observation at an origin.", "ops-research")
    (event,) = done.asset_materializations_for_node("flight_delay__features__feature_store")
    warning = "flight_delay_v1 has the deprecated weather_temp (a thermometer in the sun): use weather_dewpoint."
    assert event.metadata["deprecated"].value == [warning]
    assert event.metadata["features"].value == 45
