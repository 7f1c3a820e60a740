"""Maintenance compacts and vacuums tables and never removes a pinned version."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from throughline.featurestore.incremental import Origin
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.content import fingerprint_frame, net_changes
from throughline.lakehouse.maintenance import maintain, tables
from throughline.lakehouse.table import current_version, pin, read, replace_all, replace_days, scan
from throughline.records import (
    DatasetRecord,
    EndpointRecord,
    FeatureStoreRecord,
    InferenceLogRecord,
    OnlineStoreRecord,
    OutcomesRecord,
)
from throughline.records.store import save_record
from throughline.retention.runs import remove_old_runs
from throughline.retention.tables import collect_pins, feast_pins, recorded_pins, with_inputs

NOW = datetime.now(UTC)
AT_ONCE, A_WEEK = timedelta(0), timedelta(days=7)
DAYS = [date(2013, 1, 1) + timedelta(days=n) for n in range(4)]


def rows(value: int, days: list[date] = DAYS) -> pl.DataFrame:
    return pl.DataFrame([{"day": day, "id": n, "value": value} for day in days for n in range(3)])


def merge(path: Path, added: pl.DataFrame) -> None:
    same = "held.day = added.day AND held.id = added.id"
    merging = DeltaTable(str(path)).merge(added.to_arrow(), same, source_alias="added", target_alias="held")
    merging.when_matched_update_all().when_not_matched_insert_all().execute()


def pinned(table: str, version: int) -> TableReference:
    return TableReference(table, version)


@examples(max_examples=12)
@given(
    st.lists(st.tuples(st.sampled_from(["days", "all", "merge", "optimize"]), st.integers(0, 3)), max_size=6),
    st.sets(st.integers(0, 6)),
)
def test_pinned_versions_and_the_newest_are_read_as_before_and_others_only_fail(
    writes: list[tuple[str, int]], wanted: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Settings(home=Path(folder))
        path = home.lakehouse / "u/raw/t"
        replace_days(path, rows(0), DAYS[0], DAYS[-1])
        for number, (kind, day) in enumerate(writes, start=1):
            match kind:
                case "days":
                    replace_days(path, rows(number, DAYS[day:]), DAYS[day], DAYS[-1])
                case "all":
                    replace_all(path, rows(number))
                case "merge":
                    merge(path, rows(number, DAYS[day : day + 1]))
                case "optimize":
                    DeltaTable(str(path)).optimize.compact()
        newest = current_version(path)
        before = {version: fingerprint_frame(scan(path, version).collect(), []) for version in range(newest + 1)}
        pins = {version for version in wanted if version <= newest}
        for _ in range(2):  # the second time there is nothing to do
            (done,) = maintain(home, {"u/raw/t": pins}, AT_ONCE, NOW)
            assert done.failure is None
        assert done.removed == 0
        for version in {*pins, newest, current_version(path)}:
            assert fingerprint_frame(scan(path, version).collect(), []) == before.get(version, before[newest])
        for version in set(before) - pins:
            with suppress(ThroughlineError):  # gone; but never something else than it was
                assert fingerprint_frame(scan(path, version).collect(), []) == before[version]
        used = {
            file for version in {*pins, current_version(path)} for file in DeltaTable(str(path), version).file_uris()
        }
        assert {str(file) for file in path.glob("day=*/*.parquet")} == used


def test_a_version_younger_than_the_retention_stays_however_old_its_files_are(settings: Settings) -> None:
    path = settings.lakehouse / "u/raw/t"
    replace_days(path, rows(0), DAYS[0], DAYS[-1])
    long_ago = time.time() - 40 * 86400
    for file in path.glob("day=*/*.parquet"):
        os.utime(file, (long_ago, long_ago))
    left_by_a_killed_writer = path / "day=2013-01-01" / "part-0.parquet"
    left_by_a_killed_writer.write_bytes(b"half")
    os.utime(left_by_a_killed_writer, (long_ago, long_ago))
    being_written = path / "day=2013-01-02" / "part-1.parquet"
    being_written.write_bytes(b"half")
    replace_days(path, rows(1), DAYS[0], DAYS[-1])
    (done,) = maintain(settings, {}, A_WEEK, NOW)
    assert done.removed == 1
    assert not left_by_a_killed_writer.exists()
    assert being_written.exists()
    assert scan(path, 0).collect()["value"].unique().to_list() == [0]


def test_small_files_become_one_without_a_change_of_content(settings: Settings) -> None:
    path = settings.lakehouse / "u/monitoring/inference_log"
    replace_days(path, rows(0), DAYS[0], DAYS[-1])
    for number in range(20):
        write_deltalake(str(path), rows(number, DAYS[:1]).to_arrow(), mode="append")
    before = fingerprint_frame(scan(path, current_version(path)).collect(), [])
    (done,) = maintain(settings, {}, A_WEEK, NOW)
    assert done.compacted == 21
    assert len(DeltaTable(str(path)).file_uris()) == len(DAYS)
    assert fingerprint_frame(scan(path, current_version(path)).collect(), []) == before
    feed = DeltaTable(str(path)).load_cdf(starting_version=current_version(path)).read_all()
    assert pl.DataFrame(feed).is_empty()
    version = current_version(path)
    maintain(settings, {}, A_WEEK, NOW)
    assert current_version(path) == version  # nothing to do is no commit


def test_net_changes_are_unknown_when_the_versions_between_were_vacuumed(settings: Settings) -> None:
    path = settings.lakehouse / "u/raw/t"
    for number in range(4):
        replace_days(path, rows(number), DAYS[0], DAYS[-1])
    assert net_changes(path, 0, 3)["net"].sort().to_list() == [-1] * 12 + [1] * 12
    maintain(settings, {"u/raw/t": [0]}, AT_ONCE, NOW)
    assert net_changes(path, 0, 3) is None
    maintain(settings, {}, AT_ONCE, NOW)
    assert net_changes(path, 0, current_version(path)) is None


def test_the_log_is_cleaned_up_to_what_is_pinned(settings: Settings) -> None:
    path = settings.lakehouse / "u/raw/t"
    for number in range(110):
        replace_days(path, rows(number, DAYS[:1]), DAYS[0], DAYS[0])
    long_ago = time.time() - 40 * 86400
    for number in range(105):
        os.utime(path / "_delta_log" / f"{number:020}.json", (long_ago, long_ago))
    for checkpoint in (path / "_delta_log").glob("*.checkpoint.parquet"):
        os.utime(checkpoint, (long_ago, long_ago))
    later = NOW + timedelta(days=40)
    maintain(settings, {"u/raw/t": [5]}, A_WEEK, later)
    assert scan(path, 5).collect()["value"].unique().to_list() == [5]
    maintain(settings, {}, A_WEEK, later)
    assert scan(path, 109).collect()["value"].unique().to_list() == [109]
    with pytest.raises(ThroughlineError, match=r"t@5 cannot be read: .*vacuumed"):
        scan(path, 5)
    # a pinned version that is gone: its table is skipped with the reason
    (done,) = maintain(settings, {"u/raw/t": [5]}, AT_ONCE, later)
    assert "not maintained" in str(done.failure)


def test_every_table_of_the_home_is_found_and_nothing_else(settings: Settings) -> None:
    assert tables(settings) == []
    for name in ("u/raw/t", "u/training/dataset", "v/raw/t"):
        replace_all(settings.lakehouse / name, rows(0))
    (settings.lakehouse / "catalog" / "seg0" / "x").mkdir(parents=True)
    (settings.lakehouse / "warehouse").mkdir()
    assert tables(settings) == ["u/raw/t", "u/training/dataset", "v/raw/t"]


# What is pinned

RECORDS = {
    ("u", "features", "feature_store"): FeatureStoreRecord(
        usecase="u", as_of=NOW, sources=[pinned("u/features/a", 1), pinned("u/features/b", 2)],
        spine=pinned("u/features/s", 3),
    ),
    ("u", "features", "online_store"): OnlineStoreRecord(usecase="u", until=NOW, sources=[pinned("u/features/a", 4)]),
    ("u", "training", "dataset"): DatasetRecord(
        usecase="u", table=pinned("u/training/dataset", 5), path="p", fingerprint="f", as_of=NOW, rows=1, numeric=[],
        categorical=[], inputs=[pinned("u/features/b", 6)], holdout_from=NOW,
    ),
    ("u", "monitoring", "inference_log"): InferenceLogRecord(
        table=pinned("u/monitoring/inference_log", 7), received=1, written=1, lost=0
    ),
    ("u", "monitoring", "outcomes"): OutcomesRecord(
        table=pinned("u/monitoring/outcomes", 8), as_of=NOW, predictions=1, labelled=1, pending=0, never_labelled=0,
        log_complete=True,
    ),
}  # fmt: skip


def test_every_record_pins_every_version_it_names(settings: Settings) -> None:
    assert recorded_pins(settings) == set()
    for key, record in RECORDS.items():
        save_record(settings, key, record)
    assert {str(pin) for pin in recorded_pins(settings)} == {
        "u/features/a@1", "u/features/b@2", "u/features/s@3", "u/features/a@4", "u/training/dataset@5",
        "u/features/b@6", "u/monitoring/inference_log@7", "u/monitoring/outcomes@8",
    }  # fmt: skip


@pytest.mark.parametrize("content", ["{", "\udcff"])
def test_a_record_that_cannot_be_read_stops_the_vacuum(settings: Settings, content: str) -> None:
    save_record(settings, ("u", "training", "dataset"), RECORDS["u", "training", "dataset"])
    (settings.records / "broken.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ThroughlineError, match=r"broken\.json cannot be read .*nothing is vacuumed") as caught:
        collect_pins(settings, [])
    assert "\n" not in str(caught.value)


def test_a_pinned_version_keeps_what_it_was_made_from(settings: Settings) -> None:
    raw, ticks, dataset = (settings.lakehouse / f"u/{name}" for name in ("raw/r", "features/f", "training/dataset"))
    for number in range(4):
        replace_all(raw, rows(number))
        note = Origin(pins={"r": number}, as_of=NOW, code="c", first=DAYS[0]).model_dump_json()
        origin = CommitProperties(custom_metadata={"userMetadata": note})
        write_deltalake(str(ticks), rows(number).to_arrow(), mode="overwrite", commit_properties=origin)
        replace_all(dataset, rows(number), {"fingerprint": "f"}, inputs=[pin(settings, "u/features/f")])
    write_deltalake(str(ticks), rows(9).to_arrow(), mode="append")  # a commit without notes: those before count
    pins = with_inputs(settings, [pinned("u/training/dataset", 1), pinned("u/features/f", 4), pinned("gone/raw/t", 2)])
    assert pins == {"u/training/dataset": {1}, "u/features/f": {1, 4}, "u/raw/r": {1, 3}, "gone/raw/t": {2}}
    for done in maintain(settings, pins, AT_ONCE, NOW):
        assert done.failure is None
    assert read(settings, pinned("u/raw/r", 1)).collect()["value"].unique().to_list() == [1]
    with pytest.raises(ThroughlineError, match="vacuumed"):
        read(settings, pinned("u/raw/r", 2))


@pytest.fixture
def usecase(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A use case whose registry holds two versions; no Feast registry."""
    held = {ModelReference("u", n): pinned("u/training/dataset", version) for n, version in ((1, 0), (2, 4))}
    monkeypatch.setattr("throughline.retention.tables.dataset_tables", lambda settings, name: held)
    return SimpleNamespace(name="u")


def endpoint(model: str) -> EndpointRecord:
    return EndpointRecord(usecase="u", model=model, sha256="s", revision="r", address="a", deployed_at=NOW)


def test_every_registered_model_version_pins_its_dataset(settings: Settings, usecase: SimpleNamespace) -> None:
    save_record(settings, ("u", "deployment", "endpoint"), endpoint("u/1"))
    assert collect_pins(settings, [usecase]) == {"u/training/dataset": {0, 4}}


def test_an_endpoint_whose_model_is_unknown_stops_the_vacuum(settings: Settings, usecase: SimpleNamespace) -> None:
    save_record(settings, ("u", "deployment", "endpoint"), endpoint("u/3"))
    with pytest.raises(ThroughlineError, match=r"serves u/3, which is not registered.*nothing is vacuumed"):
        collect_pins(settings, [usecase])


def test_without_mlflow_no_pins_are_collected(settings: Settings) -> None:
    with pytest.raises(ThroughlineError, match="MLflow"):
        collect_pins(settings, [SimpleNamespace(name="u")])


def test_the_feast_registry_pins_its_sources(settings: Settings) -> None:
    from throughline.featurestore.delta_source import DeltaSource
    from throughline.featurestore.store import open_store

    usecase = SimpleNamespace(name="u", features=SimpleNamespace(definitions="features.u.definitions"))
    places = {name: settings.lakehouse / f"u/features/{name}" for name in ("a", "b")}
    places["elsewhere"] = settings.home / "elsewhere"
    for place in places.values():
        replace_all(place, rows(0).with_columns(pl.lit(NOW).alias("event_timestamp")))
    open_store(settings, usecase).apply(
        [
            DeltaSource(name=name, path=str(place), version=0, timestamp_field="event_timestamp")
            for name, place in places.items()
        ]
    )
    assert feast_pins(settings, usecase) == {pinned("u/features/a", 0), pinned("u/features/b", 0)}


# Folders of past runs


def test_old_folders_of_runs_are_removed_and_others_stay(settings: Settings) -> None:
    run, recent = "0b7b1ac6-5c2a-4c8e-9a0a-1f6b2f0e7c11", "1b7b1ac6-5c2a-4c8e-9a0a-1f6b2f0e7c11"
    old = time.time() - 8 * 86400
    for place in (settings.dbt_home / "runs", settings.dagster_home / "storage"):
        for name in (run, recent, "schedules"):
            (place / name / "compute_logs").mkdir(parents=True)
            if name != recent:
                os.utime(place / name, (old, old))
    assert remove_old_runs(settings, A_WEEK, datetime.now(UTC)) == 2
    for place in (settings.dbt_home / "runs", settings.dagster_home / "storage"):
        assert sorted(folder.name for folder in place.iterdir()) == [recent, "schedules"]
    assert remove_old_runs(settings, A_WEEK, datetime.now(UTC)) == 0
