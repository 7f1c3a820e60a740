"""Training: a dataset as of the data clock, and a model version trained on it under the launcher."""

from collections.abc import Mapping
from typing import Any

from dagster import AssetExecutionContext, AssetsDefinition, DataVersion, Definitions, Output, ResourceParam, asset

from assets.features import GROUP as FEATURES
from assets.resources import clock_now, record_of
from throughline import tags
from throughline.experiment.fingerprint import fingerprint_code
from throughline.experiment.train import train_and_register
from throughline.featurestore.dataset import build_dataset
from throughline.launch import Launcher
from throughline.records import DatasetRecord, FeatureStoreRecord, ModelRecord
from throughline.settings import PROJECT_ROOT, Settings
from throughline.usecase import UseCase

GROUP = "training"


def training_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_dataset(usecase), _model(usecase)])


def _dataset(usecase: UseCase) -> AssetsDefinition:
    request_features = usecase.features.request_features.partition(":")[0].replace(".", "/")

    @asset(
        key=[usecase.name, GROUP, "dataset"],
        group_name=GROUP,
        kinds={"deltalake", "feast", "polars"},
        description="Labelled rows joined point in time with the feature service, at pinned table versions.",
        code_version=fingerprint_code([PROJECT_ROOT / f"{request_features}.py"]),
        ins={"feature_store": record_of(usecase, FEATURES, "feature_store")},
    )
    def dataset(
        context: AssetExecutionContext, settings: ResourceParam[Settings], feature_store: FeatureStoreRecord
    ) -> Output[DatasetRecord]:
        record = build_dataset(settings, usecase, feature_store, clock_now(settings, usecase))
        return Output(
            record,
            data_version=DataVersion(record.fingerprint),
            metadata={
                "dagster/row_count": record.rows,
                "fingerprint": record.fingerprint,
                "as_of": record.as_of.isoformat(),
                "holdout_from": record.holdout_from.isoformat(),
                "delta_version": record.table.version,
                "inputs": [str(version) for version in record.inputs],
            },
        )

    return dataset


def _model(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "model"],
        group_name=GROUP,
        kinds={"horovod", "pytorch", "onnx", "mlflow"},
        description=usecase.goal,
        owners=[f"team:{owner}" for owner in usecase.owners],
        code_version=fingerprint_code([PROJECT_ROOT / "training"]),
        ins={"dataset": record_of(usecase, GROUP, "dataset")},
    )
    def model(
        context: AssetExecutionContext,
        settings: ResourceParam[Settings],
        launcher: ResourceParam[Launcher],
        dataset: DatasetRecord,
    ) -> Output[ModelRecord]:
        told = {"dagster_run_id": context.run.run_id}
        if cause := context.run.tags.get(tags.CAUSE):
            told["cause"] = cause
        record = train_and_register(
            settings, usecase, dataset, launcher, on_event=lambda event: context.log.info(_line(event)), tags=told
        )
        return Output(
            record,
            data_version=DataVersion(record.sha256),
            metadata={
                "model": record.reference,
                "sha256": record.sha256,
                "dataset_fingerprint": record.dataset_fingerprint,
                "mlflow_run": record.run_id,
                "trainer": record.trainer,
            },
        )

    return model


def _line(event: Mapping[str, Any]) -> str:
    """A worker's progress event as a person reads it: its name, then its numbers."""
    told = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in event.items()
        if name not in {"event", "sha256"}
    )
    return f"{event.get('event', 'progress')}: {told}"
