"""Every feature of the built-in use case says what it is, in what unit, and is a column that its table's SQL makes."""

from __future__ import annotations

import pytest
from feast import FeatureService, FeatureView

from features.flight_delay import definitions
from throughline.featurestore.delta_source import DeltaSource
from throughline.settings import PROJECT_ROOT


@pytest.fixture(scope="module")
def objects() -> list:
    return definitions.build(lambda table: DeltaSource(name=table, path=table, version=0, timestamp_field="t"))


def test_every_feature_says_what_it_is_and_its_unit(objects: list) -> None:
    features = [feature for view in objects if isinstance(view, FeatureView) for feature in view.features]
    assert len(features) == 25
    for feature in features:
        assert feature.description.endswith("."), f"{feature.name} says nothing"
        assert 20 <= len(feature.description) <= 90, f"{feature.name}: one short sentence"
        assert feature.tags["unit"], f"{feature.name} has no unit"
    assert len({feature.description for feature in features}) == len(features), "two features say the same"


def test_a_window_is_named_as_long_as_it_is_described(objects: list) -> None:
    for view in objects:
        for feature in view.features if isinstance(view, FeatureView) else ():
            ending = feature.name.rpartition("_")[2]
            if ending.endswith("h") and ending[:-1].isdigit():
                span = "7 days" if ending == "168h" else f"{ending[:-1]} hours"
                assert span in feature.description, feature.name


def test_features_are_columns_of_their_tables(objects: list) -> None:
    for view in objects:
        if isinstance(view, FeatureView):
            sql = (PROJECT_ROOT / "features" / "models" / "flight_delay" / f"{view.name}.sql").read_text()
            for feature in view.features:
                assert f"as {feature.name}" in sql, f"{view.name} does not make {feature.name}"


def test_no_service_has_a_deprecated_feature(objects: list) -> None:
    views = {view.name: view for view in objects if isinstance(view, FeatureView)}
    for service in (each for each in objects if isinstance(each, FeatureService)):
        for projection in service.feature_view_projections:
            assert "deprecated" not in views[projection.name].tags
            assert not [feature.name for feature in projection.features if "deprecated" in feature.tags]
