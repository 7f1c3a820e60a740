"""A registered version as the candidate of the pipeline, on a real ephemeral instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetSpec, ExecuteInProcessResult, materialize

from assets.resources import RecordIOManager
from assets.training import training_assets
from tests.graph.test_release import error_of
from tests.support.sealed import seal_model
from tests.support.training_home import START, write_dataset
from throughline.featurestore.dataset import NOTE
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all, scan
from throughline.records import DatasetRecord, FeatureStoreRecord, ModelRecord
from throughline.records.store import load_record, save_record
from throughline.registry import versions
from throughline.usecase import get_usecase

USECASE = get_usecase("flight_delay")


@pytest.fixture
def dataset(settings: Settings, tmp_path: Path) -> DatasetRecord:
    """On record in the table's history, beside a feature store that nothing can be built from."""
    record = write_dataset(tmp_path, rows=100)
    columns = {*USECASE.evaluation.slices.columns, *(rule.feature for rule in USECASE.evaluation.behaviour.values())}
    record = record.model_copy(update={"numeric": [*record.numeric, *sorted(columns - {"origin", "carrier"})]})
    record = record.model_copy(update={"numeric": [*record.numeric, USECASE.evaluation.simple_rule.feature]})
    table = settings.table_path(USECASE.name, "training", "dataset")
    version = replace_all(table, scan(record.path, 0), {NOTE: record.model_dump_json()}, inputs=[])
    store = FeatureStoreRecord(
        usecase=USECASE.name, as_of=START, sources=[], spine=TableReference("none/features/spine", 0), views=[]
    )
    save_record(settings, (USECASE.name, "features", "feature_store"), store)
    return record.at(version)


def propose(settings: Settings, dataset: DatasetRecord, candidate: str) -> ExecuteInProcessResult:
    ops: dict[str, Any] = {
        f"{USECASE.name}__training__dataset": {"config": {"table": str(dataset.table)}},
        f"{USECASE.name}__training__model": {"config": {"candidate": candidate}},
    }
    return materialize(
        [*training_assets(USECASE).assets, AssetSpec([USECASE.name, "features", "feature_store"])],
        selection=[AssetKey([USECASE.name, "training", name]) for name in ("dataset", "model")],
        resources={"settings": settings, "launchers": {}, "io_manager": RecordIOManager(settings)},
        run_config={"ops": ops},
        raise_on_error=False,
    )


@pytest.fixture
def registered(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModelRecord]:
    """What the registry (a fake here) has."""
    found: list[ModelRecord] = []
    monkeypatch.setattr(versions, "get", lambda settings, reference: found[0])
    monkeypatch.setattr("assets.training.model_metadata", lambda settings, record: {})
    return found


def sealed(settings: Settings, tmp_path: Path, fingerprint: str) -> ModelRecord:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"onnx")
    return seal_model(settings, folder, version=3, dataset_fingerprint=fingerprint)


def test_a_proposed_version_is_the_candidate_on_its_own_dataset_and_nothing_is_trained(
    settings: Settings, tmp_path: Path, dataset: DatasetRecord, registered: list[ModelRecord]
) -> None:
    registered.append(sealed(settings, tmp_path, dataset.fingerprint))
    assert propose(settings, dataset, "flight_delay/3").success
    candidate = load_record(settings, (USECASE.name, "training", "model"), ModelRecord)
    assert candidate.reference == ModelReference("flight_delay", 3)
    judged_on = load_record(settings, (USECASE.name, "training", "dataset"), DatasetRecord)
    assert judged_on.fingerprint == dataset.fingerprint


def test_a_version_trained_on_other_rows_is_refused(
    settings: Settings, tmp_path: Path, dataset: DatasetRecord, registered: list[ModelRecord]
) -> None:
    registered.append(sealed(settings, tmp_path, "f" * 64))
    result = propose(settings, dataset, "flight_delay/3")
    assert not result.success
    assert "was trained on dataset ffffffffffff" in error_of(result)


def test_a_model_of_another_use_case_is_refused(
    settings: Settings, dataset: DatasetRecord, registered: list[ModelRecord]
) -> None:
    result = propose(settings, dataset, "returns/3")
    assert not result.success
    assert "is no model of flight_delay" in error_of(result)
