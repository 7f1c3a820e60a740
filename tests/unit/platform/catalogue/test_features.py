"""The catalogue holds what is registered; without MLflow the models that use a feature are unknown."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64
from feast.value_type import ValueType

from throughline.catalogue import definitions
from throughline.catalogue import features as catalogue
from throughline.catalogue.features import Entry, State, Usage
from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.layout import EVENT_TIME
from throughline.featurestore.lineage import Upstream
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all
from throughline.records import FeatureStoreRecord, FeatureViewRecord
from throughline.usecase import Online, UseCase, get_usecase

NOW = datetime(2013, 4, 1, tzinfo=UTC)
TICKS = TableReference("flight_delay/features/ticks", 3)
LINEAGE = {"ticks": {"delay_2h": [Upstream("departures", "delay")], "delay_6h": [Upstream("departures", "delay")]}}


def model(version: int) -> ModelReference:
    return ModelReference("flight_delay", version)


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    declared = get_usecase("flight_delay")
    return declared.model_copy(update={"online": Online(freshness={"delays": timedelta(hours=6)})})


def view(old_tags: dict[str, str] | None = None, **options: object) -> FeatureView:
    return FeatureView(
        name="delays",
        entities=[Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)],
        schema=[
            Field(name="delay_2h", dtype=Float64, description="Mean delay.", tags={"unit": "minutes"}),
            Field(name="delay_6h", dtype=Float64, description="Mean delay, longer.", tags=old_tags or {}),
        ],
        source=DeltaSource(name="ticks", path="x/ticks", version=3, timestamp_field=EVENT_TIME),
        **options,
    )


def described(view: FeatureView, *services: FeatureService) -> list[FeatureViewRecord]:
    return definitions.describe([view], services, [TICKS], LINEAGE, {"ticks": "Hourly ticks."}, ["ops"])


def entries(usecase: UseCase, views: list[FeatureViewRecord], **state: object) -> dict[str, Entry]:
    record = FeatureStoreRecord(usecase=usecase.name, as_of=NOW, sources=[TICKS], spine=TICKS, views=views)
    usage = Usage({model(1): frozenset({"delay_2h"})}, None, [(7, frozenset({"delay_2h"}))], TICKS)
    given = {"now": NOW, "newest": {"delays": NOW - timedelta(hours=2)}, "usage": usage, **state}
    return {entry.name: entry for entry in catalogue.entries(usecase, record, State(**given))}


def test_a_feature_is_described_by_its_definition_its_table_and_its_sql(usecase: UseCase) -> None:
    (made,) = described(view(), FeatureService(name="v1", features=[view()[["delay_2h"]]]))
    assert (made.description, made.owner, made.entities) == ("Hourly ticks.", "ops", ["origin"])
    assert made.table == TICKS
    assert [(f.name, f.type, f.services, f.upstream) for f in made.features] == [
        ("delay_2h", "Float64", ["v1"], ["departures.delay"]),
        ("delay_6h", "Float64", [], ["departures.delay"]),
    ]


def test_a_views_own_words_win() -> None:
    (made,) = described(view(description="Own words.", owner="other-team"))
    assert (made.description, made.owner) == ("Own words.", "other-team")


def test_lineage_that_could_not_be_read_is_unknown_not_empty(usecase: UseCase) -> None:
    views = definitions.describe([view()], [], [TICKS], {}, {}, ["ops"])
    assert {entry.upstream for entry in entries(usecase, views).values()} == {None}


def test_a_deprecated_feature_in_a_service_is_warned_of_with_what_replaces_it() -> None:
    old = {"deprecated": "too slow", "replaced_by": "delay_2h"}
    used = described(
        view(old), FeatureService(name="v1", features=[view()]), FeatureService(name="v2", features=[view()])
    )
    assert catalogue.deprecations(used) == [
        "v1 has the deprecated delay_6h (too slow): use delay_2h.",
        "v2 has the deprecated delay_6h (too slow): use delay_2h.",
    ]
    unused = described(view(old), FeatureService(name="v1", features=[view()[["delay_2h"]]]))
    assert catalogue.deprecations(unused) == []


def test_a_replacement_that_nobody_defines_is_told() -> None:
    lines = catalogue.deprecations(described(view({"deprecated": "old", "replaced_by": "delay_9h"})))
    assert lines == ["delay_6h names the replacement delay_9h, which is not defined."]


def test_a_deprecated_view_deprecates_its_features(usecase: UseCase) -> None:
    found = entries(usecase, described(view(tags={"deprecated": "moved", "replaced_by": "delay_2h"})))
    assert set(found) == {"delays", "delay_2h", "delay_6h"}
    assert {(entry.deprecated, entry.replaced_by) for entry in found.values()} == {("moved", "delay_2h")}


def test_models_and_reads_are_counted_per_feature_and_together_for_a_view(usecase: UseCase) -> None:
    found = entries(usecase, described(view()))
    assert (found["delay_2h"].models, found["delay_2h"].reads) == ([model(1)], 7)
    assert (found["delay_6h"].models, found["delay_6h"].reads) == ([], 0)
    assert (found["delays"].models, found["delays"].reads) == ([model(1)], 7)
    assert found["delays"].features == ["delay_2h", "delay_6h"]


def test_without_mlflow_the_models_are_unknown_and_the_rest_is_told(usecase: UseCase) -> None:
    usage = Usage(None, "MLflow does not answer", [(7, frozenset({"delay_2h"}))], TICKS)
    found = entries(usecase, described(view()), usage=usage)["delay_2h"]
    assert (found.models, found.models_unknown, found.reads) == (None, "MLflow does not answer", 7)


@pytest.mark.parametrize(
    ("hours", "fresh"),
    [(2, True), (6, True), (6.01, False), (None, False)],
    ids=["young", "at the limit", "old", "none"],
)
def test_fresh_is_what_is_promised_on_the_data_clock(usecase: UseCase, hours: float | None, fresh: bool) -> None:
    newest = {"delays": None if hours is None else NOW - timedelta(hours=hours)}
    found = entries(usecase, described(view()), newest=newest)["delay_2h"].freshness
    assert (found.fresh, found.allowed_s) == (fresh, 6 * 3600)


def test_where_nothing_is_promised_nothing_is_judged(usecase: UseCase) -> None:
    silent = usecase.model_copy(update={"online": Online()})
    assert entries(silent, described(view()))["delay_2h"].freshness.fresh is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["delay_2h"], ["delay_2h"]),
        (["MEAN", "minutes"], ["delay_2h"]),
        (["longer", "mean"], ["delay_6h"]),
        (["departures.delay"], ["delay_2h", "delay_6h", "delays"]),
        (["origin", "nothing-like-it"], []),
    ],
    ids=["name", "any case, tags", "any order", "upstream column", "all words"],
)
def test_search_looks_for_all_words_in_all_that_is_known(usecase: UseCase, words: list[str], found: list[str]) -> None:
    assert [entry.name for entry in catalogue.search(entries(usecase, described(view())).values(), words)] == found


def test_a_name_that_holds_the_words_comes_before_a_description_that_does(usecase: UseCase) -> None:
    found = catalogue.search(entries(usecase, described(view(description="about delay_6h"))).values(), ["delay_6h"])
    assert [entry.name for entry in found] == ["delay_6h", "delays"]


def test_a_wrong_name_is_one_line_with_the_nearest_ones(usecase: UseCase) -> None:
    known = list(entries(usecase, described(view())).values())
    assert catalogue.find(known, "delay_6h").name == "delay_6h"
    with pytest.raises(ThroughlineError, match=r"dleay_6h: did you mean delay_6h.*\?") as refusal:
        catalogue.find(known, "dleay_6h")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ThroughlineError, match="features list"):
        catalogue.find(known, "xyzzy")


def test_a_name_in_two_use_cases_is_asked_for(usecase: UseCase) -> None:
    one = list(entries(usecase, described(view())).values())
    two = [entry.model_copy(update={"usecase": "other"}) for entry in one]
    with pytest.raises(ThroughlineError, match=r"flight_delay, other.*--usecase"):
        catalogue.find([*one, *two], "delay_2h")


# With tables


def log_of(settings: Settings, *predictions: tuple[int, list[str]]) -> None:
    rows = [
        {"model_name": "flight_delay", "model_version": version, "features": json.dumps(dict.fromkeys(features, 1.0))}
        for version, features in predictions
    ]
    replace_all(settings.table_path("flight_delay", "monitoring", "inference_log"), pl.DataFrame(rows))


def test_reads_are_the_predictions_of_the_versions_that_use_a_feature(settings: Settings, usecase: UseCase) -> None:
    log_of(settings, (1, ["a", "b"]), (1, ["a", "b"]), (2, ["b"]), (2, ["b"]), (2, ["b"]))
    usage = catalogue.read_usage(settings, usecase)
    assert [usage.reads_of(names) for names in (["a"], ["b"], ["a", "b"], ["c"])] == [2, 5, 5, 0]
    assert str(usage.log) == "flight_delay/monitoring/inference_log@0"


def test_without_a_log_nothing_was_read_and_without_mlflow_nobody_is_known(
    settings: Settings, usecase: UseCase
) -> None:
    usage = catalogue.read_usage(settings, usecase)
    assert (usage.log, usage.reads_of(["a"])) == (None, 0)
    assert usage.models is None
    assert "throughline up" in (usage.models_unknown or "")


def test_a_model_uses_the_columns_of_the_dataset_it_was_trained_on(
    settings: Settings, usecase: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = settings.table_path("flight_delay", "training", "dataset")
    for columns in (["a", "label"], ["a", "b", "label"]):
        replace_all(place, pl.DataFrame({name: [1.0] for name in columns}))
    trained = {model(n): TableReference("flight_delay/training/dataset", v) for n, v in ((10, 1), (2, 0), (1, 0))}
    monkeypatch.setattr(catalogue, "dataset_tables", lambda settings, name: trained)
    usage = catalogue.read_usage(settings, usecase)
    assert usage.models_of(["b"]) == [model(10)]
    assert usage.models_of(["a"]) == [model(1), model(2), model(10)]


def test_the_newest_row_is_one_that_the_data_clock_has_reached(settings: Settings, usecase: UseCase) -> None:
    ticks = [NOW - timedelta(hours=3), NOW + timedelta(hours=1)]
    replace_all(settings.table_path("flight_delay", "features", "ticks"), pl.DataFrame({EVENT_TIME: ticks}))
    table = TableReference(TICKS.table, 0)
    record = FeatureStoreRecord(usecase=usecase.name, as_of=NOW, sources=[table], spine=table)
    record = record.model_copy(update={"views": [one.model_copy(update={"table": table}) for one in described(view())]})
    found = {entry.name: entry for entry in catalogue.read_catalogue(settings, usecase, record, NOW)}
    assert found["delays"].freshness.age_s == 3 * 3600
    pushed = pl.DataFrame({EVENT_TIME: [NOW - timedelta(hours=1)]})
    replace_all(settings.table_path("flight_delay", "features", "ticks_pushed"), pushed)
    beside = TableReference("flight_delay/features/ticks_pushed", 0)
    record = record.model_copy(update={"sources": [table, beside]})
    found = {entry.name: entry for entry in catalogue.read_catalogue(settings, usecase, record, NOW)}
    assert found["delays"].freshness.age_s == 3600, "a pushed row counts"
