"""The parity of online and offline values: equal when nothing went wrong, and a mismatch when something did."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from dagster import AssetKey, DagsterInstance, Definitions, SourceAsset, materialize

from assets.online import online_assets
from assets.resources import RecordIOManager
from tests.contract.online_store.conftest import DAY, HOUR, START, World
from throughline.featurestore import materialise
from throughline.featurestore.parity import ViewParity, check_parity
from throughline.featurestore.windows import Changes
from throughline.foundation.references import TableReference
from throughline.lakehouse.table import replace_all
from throughline.records import FeatureStoreRecord
from throughline.records.store import save_record
from throughline.usecase import Online, Parity


@pytest.fixture
def filled(world: World) -> World:
    for place in "abcdefgh":
        for hour in range(0, 72, 2):
            world.set("kept", place, hour, float(hour))
            world.set("expiring", place, hour, hour)
    world.at(START + 3 * DAY).bring()
    return world


def parity(world: World) -> dict[str, ViewParity]:
    return {view.view: view for view in check_parity(world.settings, world.usecase)}


def verdicts(world: World) -> dict[str, str]:
    return {name: view.verdict for name, view in parity(world).items()}


EQUAL = {"kept": "equal", "expiring": "equal"}


def test_online_values_are_those_of_training_rows(filled: World) -> None:
    views = parity(filled)
    assert {name: view.verdict for name, view in views.items()} == EQUAL
    assert (views["kept"].entities, views["kept"].values) == (8, 16)
    assert (views["expiring"].entities, views["expiring"].values) == (8, 8)


def test_a_late_row_that_was_left_out_is_a_mismatch(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history is faked as unchanged, so that the window that is written does not contain the late row."""
    for hour in range(50, 72, 2):
        filled.set("kept", "c", hour, None)
    filled.bring()
    assert verdicts(filled) == EQUAL
    filled.set("kept", "c", 60, 4.5)
    filled.at(START + 3 * DAY + HOUR)
    with monkeypatch.context() as blind:
        blind.setattr(materialise, "_changes", lambda *_: Changes())
        assert filled.bring()["kept"].start is not None
    found = parity(filled)["kept"]
    assert [(one.entity, one.feature, one.online, one.offline) for one in found.mismatches] == [
        ({"place": "c"}, "text", "t48.0", "t4.5"),
        ({"place": "c"}, "value", 48.0, 4.5),
    ]


def test_training_on_newer_versions_than_online_is_a_mismatch(filled: World) -> None:
    filled.set("kept", "a", 71, 4.5)
    filled.write()
    filled.register()
    assert verdicts(filled) == {"kept": "different", "expiring": "equal"}
    filled.bring()
    assert verdicts(filled) == EQUAL


def test_a_dropped_write_is_a_mismatch(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.set("kept", "b", 73, 9.0)
    filled.set("expiring", "b", 73, 9)
    filled.at(START + 3 * DAY + 2 * HOUR)
    whole = materialise.to_rows
    with monkeypatch.context() as losing:
        losing.setattr(materialise, "to_rows", lambda view, rows: whole(view, rows.filter(pl.col("place") != "b")))
        filled.bring()
    assert verdicts(filled) == {"kept": "different", "expiring": "different"}
    only = parity(filled)["expiring"].mismatches
    assert [(one.entity, one.online, one.offline) for one in only] == [({"place": "b", "gate": 0}, 70, 9)]


def test_a_changed_transformation_is_a_mismatch_until_materialised(filled: World) -> None:
    path = filled.settings.table_path("u", "features", "kept")
    replace_all(path, pl.read_delta(str(path)).with_columns(pl.col("value") * 60))
    filled.register()
    found = parity(filled)["kept"]
    assert {(one.feature, one.online, one.offline) for one in found.mismatches} == {("value", 70.0, 4200.0)}
    assert len(found.mismatches) == 8
    materialise.materialise_until(filled.settings, filled.usecase, filled.now)
    assert verdicts(filled) == EQUAL


def test_an_online_row_that_no_table_has_is_a_mismatch(filled: World) -> None:
    for hour in range(0, 72, 2):
        filled.set("kept", "h", hour, None)
    filled.write()
    filled.register()
    assert {(one.entity["place"], one.offline) for one in parity(filled)["kept"].mismatches} == {("h", None)}


def test_pushed_rows_are_on_both_sides_at_once(filled: World) -> None:
    row = {"place": "a", "text": None, "value": 5.0}
    filled.at(START + 3 * DAY + HOUR / 2)
    filled.push("kept", [row])
    assert verdicts(filled) == EQUAL
    assert parity(filled)["kept"].at == filled.now


def test_without_a_recorded_state_there_is_no_verdict(world: World) -> None:
    world.set("kept", "a", 1, 1.0)
    world.write()
    world.register()
    assert verdicts(world) == {"kept": "cannot_say", "expiring": "cannot_say"}
    world.at(START + DAY).bring()
    # one view has a row, the other never had one
    assert verdicts(world) == {"kept": "equal", "expiring": "cannot_say"}


def test_values_that_expired_on_both_sides_prove_nothing(filled: World) -> None:
    filled.at(START + 9 * DAY).bring()
    assert verdicts(filled) == {"kept": "equal", "expiring": "cannot_say"}


def test_the_sample_has_its_declared_size(filled: World) -> None:
    filled.usecase = filled.usecase.model_copy(update={"online": Online(parity=Parity(entities=3, seed=1))})
    assert [view.entities for view in parity(filled).values()] == [3, 3]


# Through Dagster


def run(world: World, **online: Any) -> tuple[Any, dict[str, Any]]:
    """The online store asset with its checks on an instance of its own; results of the checks by name."""
    world.usecase = world.usecase.model_copy(update={"online": Online(**online)})
    record = FeatureStoreRecord(usecase="u", as_of=world.now, sources=[], spine=TableReference("u/features/spine", 0))
    save_record(world.settings, ("u", "features", "feature_store"), record)
    defined: Definitions = online_assets(world.usecase)
    resources = {"settings": world.settings, "io_manager": RecordIOManager(world.settings)}
    with DagsterInstance.ephemeral() as instance:
        upstream = SourceAsset(AssetKey(["u", "features", "feature_store"]))
        every = [upstream, *defined.assets, *defined.asset_checks]
        done = materialize(every, instance=instance, resources=resources)
        checks = {each.check_name: each for each in done.get_asset_check_evaluations()}
    return done, checks


def test_the_check_passes_and_reports_what_was_compared(filled: World) -> None:
    done, checks = run(filled, freshness={"kept": "3h", "expiring": "1h"})
    assert done.success
    equal = checks["online_equals_offline"]
    assert equal.passed
    assert equal.metadata["values"].value == 24
    assert equal.metadata["kept"].value == "equal: 16 values of 8 entities compared"
    assert checks["kept_fresh_on_the_data_clock"].passed
    stale = checks["expiring_fresh_on_the_data_clock"]
    assert not stale.passed
    assert stale.metadata["reason"].value == "newest row is 2:00:00 old, 1:00:00 are allowed"
    written = done.asset_materializations_for_node("u__features__online_store")[0].metadata["written"].value
    assert set(written) == {"kept", "expiring"}


def test_the_check_fails_with_a_table_of_the_differences(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.set("kept", "b", 73, 9.0)
    filled.at(START + 3 * DAY + 2 * HOUR)
    filled.write()
    filled.register()
    whole = materialise.to_rows
    monkeypatch.setattr(materialise, "to_rows", lambda view, rows: whole(view, rows.filter(pl.col("place") != "b")))
    done, checks = run(filled)
    red = checks["online_equals_offline"]
    assert done.success
    assert not red.passed
    assert red.asset_key == AssetKey(["u", "features", "online_store"])
    records = [record.data for record in red.metadata["differences"].value.records]
    assert {"view": "kept", "entity": "b", "feature": "value", "online": "70.0", "offline": "9.0"} in records


def test_a_view_never_materialised_is_not_fresh(world: World) -> None:
    world.set("kept", "a", 1, 1.0)
    world.write()
    world.register()
    _, checks = run(world, freshness={"expiring": "1h", "nowhere": "1h"})
    assert not checks["expiring_fresh_on_the_data_clock"].passed
    reason = checks["nowhere_fresh_on_the_data_clock"].metadata["reason"].value
    assert reason == "no state of nowhere is recorded online"
    assert not checks["online_equals_offline"].passed
