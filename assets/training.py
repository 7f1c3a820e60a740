"""Training: a dataset as of the data clock, and a model version trained on it.

The pipeline's own model follows the declaration; a person may change a run's trainer and parameters in the launchpad.
What is submitted by `throughline train` is an experiment (`experiments.py`) and leaves the pipeline as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    Config,
    DataVersion,
    Definitions,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
)
from pydantic import Field

from assets.features import GROUP as FEATURES
from assets.resources import Launchers, clock_now, record_of
from throughline.evaluation.evaluate import require_columns
from throughline.experiment.recipe import pipeline_code, recipe_of
from throughline.experiment.train import Run, train_and_register
from throughline.featurestore.dataset import build_dataset
from throughline.foundation import tags
from throughline.foundation.fingerprint import fingerprint_code
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.records import DatasetRecord, FeatureStoreRecord, ModelRecord
from throughline.registry import versions as models
from throughline.registry.versions import SUBMITTER_TAG
from throughline.usecase import UseCase

GROUP = "training"


def training_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_dataset(usecase), _model(usecase)])


class TrainingConfig(Config):
    """What a run may train otherwise than declared."""

    trainer: str | None = Field(None, description="One of the declared trainers; unset: the declaration's choice.")
    parameters: dict[str, Any] = Field({}, description="Over the declared ones; MEMBER.NAME for a member's.")
    force: bool = Field(False, description="Train also when the same recipe was trained on the same rows.")


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
        require_columns(usecase, record)
        return Output(record, data_version=DataVersion(record.fingerprint), metadata=told_of_dataset(record))

    return dataset


def _model(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "model"],
        group_name=GROUP,
        kinds={"horovod", "pytorch", "onnx", "mlflow"},
        description=usecase.goal,
        owners=[f"team:{owner}" for owner in usecase.owners],
        code_version=pipeline_code(usecase),
        ins={"dataset": record_of(usecase, GROUP, "dataset")},
    )
    def model(
        context: AssetExecutionContext,
        config: TrainingConfig,
        settings: ResourceParam[Settings],
        launchers: ResourceParam[Launchers],
        dataset: DatasetRecord,
    ) -> Output[ModelRecord]:
        record = train_and_register(
            Run(settings, tell_in(context), launchers=launchers),
            usecase,
            dataset,
            recipe_of(settings, usecase, config.trainer, config.parameters),
            tags=tags_of(context),
            force=config.force,
        )
        return Output(record, data_version=DataVersion(record.sha256), metadata=told_of_model(settings, record))

    return model


def tags_of(context: AssetExecutionContext) -> dict[str, str]:
    """What a version should know of the run that made it."""
    told = {"dagster_run_id": context.run.run_id, SUBMITTER_TAG: context.run.tags.get(tags.SUBMITTER, GRAPH)}
    if cause := context.run.tags.get(tags.CAUSE):
        told["cause"] = cause
    return told


def told_of_dataset(record: DatasetRecord) -> dict[str, Any]:
    return {
        "dagster/row_count": record.rows,
        "fingerprint": record.fingerprint,
        "as_of": record.as_of.isoformat(),
        "holdout_from": record.holdout_from.isoformat(),
        "delta_version": record.table.version,
        "inputs": [str(version) for version in record.inputs],
    }


def told_of_model(settings: Settings, record: ModelRecord) -> dict[str, Any]:
    """A version with what it was made from: as it was registered, which may be long ago."""
    said = models.provenance_of(settings, record).tags
    return {
        "model": str(record.reference),
        "sha256": record.sha256,
        "dataset": said.get("throughline.dataset_table"),
        "dataset_fingerprint": record.dataset_fingerprint,
        "code": said.get("throughline.revision"),
        "trainer": record.trainer,
        "mlflow_run": record.run_id,
        "mlflow": MetadataValue.url(models.page(settings, record)),
    }


def tell_in(context: AssetExecutionContext) -> Callable[[Mapping[str, Any]], None]:
    """Workers' events as lines of the run's log."""
    return lambda event: context.log.info(_line(event))


def _line(event: Mapping[str, Any]) -> str:
    """A worker's progress event as a person reads it: its name, then its numbers."""
    told = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in event.items()
        if name not in {"event", "sha256"} and value is not None
    )
    return f"{event.get('event', 'progress')}: {told}"
