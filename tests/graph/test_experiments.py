"""An experiment on a real ephemeral instance: what cannot end well is refused before anything is started."""

from __future__ import annotations

from pathlib import Path

from dagster import AssetKey, AssetSpec, materialize

from assets.experiments import experiments
from assets.resources import RecordIOManager
from assets.training import RequestConfig
from tests.graph.test_release import error_of
from tests.support.training_home import START, write_dataset
from throughline.experiment.request import SearchRequest, TrainingRequest
from throughline.featurestore.dataset import NOTE
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_all, scan
from throughline.records import FeatureStoreRecord
from throughline.records.store import save_record
from throughline.usecase import get_usecase


def test_rows_that_the_declared_evaluation_cannot_judge_are_not_trained_on(settings: Settings, tmp_path: Path) -> None:
    """Neither MLflow nor a launcher is there: a step that used one would fail with another message."""
    usecase = get_usecase("flight_delay")
    dataset = write_dataset(tmp_path, rows=100)
    table = settings.table_path(usecase.name, "training", "dataset")
    version = replace_all(table, scan(dataset.path, 0), {NOTE: dataset.model_dump_json()}, inputs=[])
    store = FeatureStoreRecord(
        usecase=usecase.name, as_of=START, sources=[], spine=TableReference("none/features/spine", 0), views=[]
    )
    save_record(settings, (usecase.name, "features", "feature_store"), store)
    config = {"trainer": "lightgbm", "table": f"{usecase.name}/training/dataset@{version}"}
    result = materialize(
        [*experiments(usecase).assets, AssetSpec([usecase.name, "features", "feature_store"])],
        selection=[AssetKey([usecase.name, "experiments", "model"])],
        resources={"settings": settings, "launchers": {}, "io_manager": RecordIOManager(settings)},
        run_config={"ops": {f"{usecase.name}__experiments__model": {"config": config}}},
        raise_on_error=False,
    )
    assert not result.success
    assert usecase.evaluation.simple_rule.feature in error_of(result)
    assert f"which dataset {config['table']} does not have" in error_of(result)


def test_the_run_config_of_an_experiment_has_every_field_of_a_request_but_the_use_case() -> None:
    assert RequestConfig.model_fields.keys() == TrainingRequest.model_fields.keys() - {"usecase"}
    search = SearchRequest(trials=3, sampler="grid", pruner="none", parallel=2, select_features=True)
    request = TrainingRequest(usecase="u", trainer="mlp", parameters={"lr": 0.1}, as_of="2013-03-15", search=search)
    config = RequestConfig(**request.model_dump(mode="json", exclude={"usecase"}, exclude_none=True))
    assert TrainingRequest(usecase="u", **config.model_dump()) == request
    assert TrainingRequest(usecase="u", **RequestConfig().model_dump()) == TrainingRequest(usecase="u")
