"""Training: a dataset as of the data clock, and a model version trained on it.

The pipeline's own model follows the declaration; the launchpad can override trainer and parameters of a run.
What is submitted by `throughline train` is an experiment (`experiments.py`) and leaves the pipeline as it is.
"""

from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

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
from pydantic import BaseModel, Field, create_model

from assets.code import code_version
from assets.features import GROUP as FEATURES
from assets.resources import Launchers, clock_now, record_of
from throughline.evaluation.evaluate import require_columns
from throughline.experiment.job import train_here
from throughline.experiment.recipe import pipeline_code
from throughline.experiment.request import TrainingRequest, dataset_version
from throughline.experiment.train import Run
from throughline.featurestore.dataset import build_dataset, find_dataset
from throughline.foundation import tags
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings
from throughline.records import DatasetRecord, FeatureStoreRecord, ModelRecord
from throughline.registry import versions as models
from throughline.usecase import UseCase

GROUP = "training"


def training_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_dataset(usecase), _model(usecase)])


def config_of(model: type[BaseModel], fields: Iterable[str] | None = None) -> type[Config]:
    """A record's fields (default: all) as a run config, so that a request is declared once.

    Dagster knows no Literal: it is a text there, and the record itself checks it.
    """
    names = model.model_fields if fields is None else fields
    derived = {name: (_config_type(model.model_fields[name].annotation), model.model_fields[name]) for name in names}
    name, doc = f"{model.__name__}Config", model.__doc__
    return create_model(name, __base__=Config, __doc__=doc, **derived)  # ty: ignore[no-matching-overload]  # any fields


def _config_type(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) is UnionType:
        return Union[tuple(_config_type(part) for part in get_args(annotation))]  # noqa: UP007 - of a list
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return config_of(annotation)
    return annotation


_REQUESTED = [name for name in TrainingRequest.model_fields if name != "usecase"]
_OVERRIDDEN = ["trainer", "parameters", "force"]


class RequestConfig(config_of(TrainingRequest, _REQUESTED)):  # ty: ignore[unsupported-base]  # made from the request
    """A training request; the use case is the job's."""


class OverrideConfig(config_of(TrainingRequest, _OVERRIDDEN)):  # ty: ignore[unsupported-base]  # made from the request
    """What a run of the pipeline may train otherwise than declared."""

    candidate: str | None = Field(None, description="NAME/VERSION to take as it is registered; nothing is trained.")


class DatasetConfig(Config):
    """Which rows a run of the pipeline takes."""

    table: str | None = Field(None, description="USECASE/training/dataset@VERSION; unset: built as of the data clock.")


def _dataset(usecase: UseCase) -> AssetsDefinition:
    request_features = usecase.features.request_features.partition(":")[0]

    @asset(
        key=[usecase.name, GROUP, "dataset"],
        group_name=GROUP,
        kinds={"deltalake", "feast", "polars"},
        description="Labelled rows joined point in time with the feature service, at pinned table versions.",
        code_version=code_version((request_features, "throughline.featurestore.dataset")),
        ins={"feature_store": record_of(usecase, FEATURES, "feature_store")},
    )
    def dataset(
        context: AssetExecutionContext,
        config: DatasetConfig,
        settings: ResourceParam[Settings],
        feature_store: FeatureStoreRecord,
    ) -> Output[DatasetRecord]:
        if config.table is None:
            record = build_dataset(settings, usecase, feature_store, clock_now(settings, usecase))
        else:
            record = find_dataset(settings, usecase, version=dataset_version(usecase, config.table))
        require_columns(usecase, record)
        return Output(record, data_version=DataVersion(record.fingerprint), metadata=dataset_metadata(record))

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
        config: OverrideConfig,
        settings: ResourceParam[Settings],
        launchers: ResourceParam[Launchers],
        dataset: DatasetRecord,
    ) -> Output[ModelRecord]:
        if config.candidate is None:
            request = TrainingRequest(usecase=usecase.name, **config.model_dump(exclude={"candidate"}))
            run = Run(settings, log_events(context), launchers=launchers)
            record = train_here(run, request, dataset, run_tags(context))
        else:
            record = _registered(settings, usecase, ModelReference.parse(config.candidate), dataset)
        return Output(record, data_version=DataVersion(record.sha256), metadata=model_metadata(settings, record))

    return model


def _registered(settings: Settings, usecase: UseCase, candidate: ModelReference, dataset: DatasetRecord) -> ModelRecord:
    """Raises for a version of another use case, or that was trained on other rows than `dataset`."""
    if candidate.name != usecase.name:
        raise ThroughlineError(f"{candidate} is no model of {usecase.name}: propose it for its own use case.")
    record = models.get(settings, candidate)
    if record.dataset_fingerprint != dataset.fingerprint:
        raise ThroughlineError(
            f"{candidate} was trained on dataset {record.dataset_fingerprint[:12]}, the run's is {dataset.table} with "
            f"fingerprint {dataset.fingerprint[:12]}: `throughline propose {candidate}` takes the version's own."
        )
    return record


def run_tags(context: AssetExecutionContext) -> dict[str, str]:
    """Tags of a version that name the run which made it, who submitted it and why."""
    found = {"dagster_run_id": context.run.run_id, "submitter": context.run.tags.get(tags.SUBMITTER, GRAPH)}
    if cause := context.run.tags.get(tags.CAUSE):
        found["cause"] = cause
    return found


def dataset_metadata(record: DatasetRecord) -> dict[str, Any]:
    return {
        "dagster/row_count": record.rows,
        "fingerprint": record.fingerprint,
        "as_of": record.as_of.isoformat(),
        "holdout_from": record.holdout_from.isoformat(),
        "delta_version": record.table.version,
        "inputs": [str(version) for version in record.inputs],
    }


def model_metadata(settings: Settings, record: ModelRecord) -> dict[str, Any]:
    """A version and what it was made from, as the registry has it."""
    registered = models.provenance_of(settings, record).decoded
    return {
        "model": str(record.reference),
        "sha256": record.sha256,
        "dataset": str(registered.get("dataset_table")),
        "dataset_fingerprint": record.dataset_fingerprint,
        "code": registered.get("commit"),
        "trainer": record.trainer,
        "mlflow_run": record.run_id,
        "mlflow": MetadataValue.url(models.page(settings, record)),
    }


def log_events(context: AssetExecutionContext) -> Callable[[Mapping[str, Any]], None]:
    """Writes workers' events as lines of the run's log."""
    return lambda event: context.log.info(_line(event))


def _line(event: Mapping[str, Any]) -> str:
    """An event for people: its name, then its figures."""
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in event.items()
        if name not in {"event", "sha256"} and value is not None
    )
    return f"{event.get('event', 'progress')}: {figures}"
