"""Every feature of the built-in use case has a description and a unit, and is a column of its table's SQL."""

from __future__ import annotations

from typing import Any

import pytest
from feast import Entity, FeatureService, FeatureView
from sqlglot import parse_one

from features.flight_delay import definitions
from throughline.featurestore import dbt
from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.incremental import models_of
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.usecase import get_usecase


@pytest.fixture(scope="module")
def objects() -> list:
    return definitions.build(lambda table: DeltaSource(name=table, path=table, version=0, timestamp_field="t"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The dbt models of the use case, by their unique ids."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    return models_of(dbt.manifest(settings), get_usecase("flight_delay"))


@pytest.fixture(scope="module")
def compiled(project: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["compiled_code"] for node in project.values()}


def test_every_feature_says_what_it_is_and_its_unit(objects: list) -> None:
    features = [feature for view in objects if isinstance(view, FeatureView) for feature in view.features]
    assert len(features) == 45
    for feature in features:
        assert feature.description.endswith("."), f"{feature.name} has no description"
        assert 20 <= len(feature.description) <= 90, f"{feature.name}: one short sentence"
        assert feature.tags["unit"], f"{feature.name} has no unit"
    assert len({feature.description for feature in features}) == len(features), "two features have one description"


def test_a_window_is_named_as_long_as_it_is_described(objects: list) -> None:
    for view in objects:
        for feature in view.features if isinstance(view, FeatureView) else ():
            ending = feature.name.rpartition("_")[2]
            if ending.endswith("h") and ending[:-1].isdigit():
                span = "7 days" if ending == "168h" else f"{ending[:-1]} hours"
                assert span in feature.description, feature.name


def test_features_are_columns_of_their_tables_and_keys_their_first(objects: list, compiled: dict[str, str]) -> None:
    keys = {entity.name: entity.join_key for entity in objects if isinstance(entity, Entity)}
    for view in objects:
        if isinstance(view, FeatureView):
            columns = parse_one(compiled[view.name], dialect="spark").named_selects
            assert columns[: len(view.entities)] == [keys[name] for name in view.entities]
            features = [feature.name for feature in view.features]
            assert sorted(features) == sorted(columns[len(keys_and_times(view)) :]), view.name


def keys_and_times(view: FeatureView) -> list[str]:
    return [*view.entities, "event_timestamp", "available_at", "ingestion_run_id", "day"]


def test_a_grid_is_declared_once_and_names_columns_and_fields(objects: list, compiled: dict[str, str]) -> None:
    (carriers,) = [view for view in objects if view.name == "carrier_ticks"]
    windowed = [feature.name for feature in carriers.features][:4]
    assert windowed == [
        "carrier_delay_3h",
        "carrier_late_share_24h",
        "carrier_delay_24h",
        "carrier_late_share_168h",
    ]
    for name in windowed:
        assert f"as {name}" in compiled["carrier_ticks"]
        assert name not in (PROJECT_ROOT / "features/models/flight_delay/carrier_ticks.sql").read_text()


def test_no_window_reaches_further_than_source_rows_are_seen(project: dict[str, Any]) -> None:
    for node in project.values():
        windows = [int(window[:-1]) for window in node["config"]["meta"].get("grid", {}).get("windows", {})]
        assert windows == sorted(windows), node["name"]
        assert max(windows, default=0) <= node["config"]["meta"]["seen_within_hours"], node["name"]


def test_no_service_has_a_deprecated_feature(objects: list) -> None:
    views = {view.name: view for view in objects if isinstance(view, FeatureView)}
    for service in (each for each in objects if isinstance(each, FeatureService)):
        for projection in service.feature_view_projections:
            assert "deprecated" not in views[projection.name].tags
            assert not [feature.name for feature in projection.features if "deprecated" in feature.tags]
