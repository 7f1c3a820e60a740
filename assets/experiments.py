"""Experiments: what a person submits by `throughline train`, the SDK or the launchpad.

An experiment makes a registered model version and numbers on the weeks held out. It stands beside the pipeline: it
changes neither the pipeline's dataset nor its candidate, and nothing follows from it by itself.
"""

from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    Config,
    Definitions,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    define_asset_job,
)
from pydantic import Field

from assets.evaluation import told_of_evaluation
from assets.features import GROUP as FEATURES
from assets.resources import Launchers, clock_now, record_of
from assets.training import tags_of, tell_in, told_of_dataset, told_of_model
from throughline.evaluation.evaluate import evaluate_candidate, require_columns
from throughline.evaluation.publish import publish
from throughline.experiment.request import SearchRequest, TrainingRequest, check, dataset_for
from throughline.experiment.submitted import carry_out
from throughline.experiment.train import Run
from throughline.foundation.settings import Settings
from throughline.models.description import describe_version
from throughline.records import FeatureStoreRecord, ModelRecord
from throughline.usecase import UseCase

GROUP = "experiments"


class ExperimentConfig(Config):
    """The words of `throughline train`; all may stay unset."""

    trainer: str | None = Field(None, description="One of the declared trainers; with a search also `auto`.")
    parameters: dict[str, Any] = Field({}, description="Over the declared ones; MEMBER.NAME for a member's.")
    as_of: str | None = Field(None, description="Train on what was known then: a local day, or an instant with zone.")
    dataset: str | None = Field(None, description="Fingerprint of an earlier dataset.")
    table: str | None = Field(None, description="USECASE/training/dataset@VERSION.")
    revision: str | None = Field(None, description="Train with the code of this git revision.")
    force: bool = Field(False, description="Train also when the same recipe was trained on the same rows.")
    trials: int = Field(0, description="Search for parameters with so many trials; 0: no search.")
    sampler: str = Field("tpe", description="tpe, random, grid or cmaes.")
    pruner: str = Field("median", description="median, hyperband, asha or none.")
    parallel: int = Field(1, description="Trials at once.")
    select_features: bool = Field(False, description="First leave out features that later weeks do not need.")

    def request(self, usecase: UseCase) -> TrainingRequest:
        said = self.model_dump()
        search = {name: said.pop(name) for name in ("trials", "sampler", "pruner", "parallel", "select_features")}
        return TrainingRequest(
            usecase=usecase.name, **said, search=SearchRequest(**search) if search["trials"] else None
        )


def experiments(usecase: UseCase) -> Definitions:
    model = _model(usecase)
    job = define_asset_job(
        f"{usecase.name}_train",
        AssetSelection.assets(model),
        description="Train an experiment; its config says which rows, which trainer, which parameters.",
    )
    return Definitions(assets=[model], jobs=[job])


def _model(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "model"],
        group_name=GROUP,
        kinds={"optuna", "onnx", "mlflow"},
        description="The newest model version that somebody submitted. Nothing is released by it.",
        owners=[f"team:{owner}" for owner in usecase.owners],
        code_version="1",
        ins={"feature_store": record_of(usecase, FEATURES, "feature_store")},
    )
    def model(
        context: AssetExecutionContext,
        config: ExperimentConfig,
        settings: ResourceParam[Settings],
        launchers: ResourceParam[Launchers],
        feature_store: FeatureStoreRecord,
    ) -> Output[ModelRecord]:
        request, now = config.request(usecase), clock_now(settings, usecase)
        check(settings, usecase, request, now)
        dataset = dataset_for(settings, usecase, request, feature_store, now)
        require_columns(usecase, dataset)
        run = Run(settings, tell_in(context), launchers=launchers)
        record = carry_out(run, usecase, request, dataset, tags_of(context))
        evaluation = evaluate_candidate(settings, usecase, dataset, record)
        report = {"report": MetadataValue.url(publish(settings, record, evaluation))}
        describe_version(settings, usecase, record, dataset, evaluation, decision=None)
        told = {**told_of_dataset(dataset), **told_of_model(settings, record), **told_of_evaluation(evaluation)}
        return Output(record, metadata=report | told)

    return model
