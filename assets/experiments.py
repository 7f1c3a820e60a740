"""Experiments: what was submitted by `throughline train`, the SDK or the launchpad.

An experiment makes a registered model version and numbers on the weeks held out. It stands beside the pipeline: it
changes neither the pipeline's dataset nor its candidate, and nothing follows from it by itself.
"""

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSelection,
    Definitions,
    MetadataValue,
    Output,
    ResourceParam,
    asset,
    define_asset_job,
)

from assets.code import code_version
from assets.evaluation import told_of_evaluation
from assets.features import GROUP as FEATURES
from assets.resources import Launchers, clock_now, record_of
from assets.training import RequestConfig, dataset_metadata, log_events, model_metadata, run_tags
from throughline.evaluation.evaluate import evaluate_candidate, require_columns
from throughline.evaluation.publish import publish
from throughline.experiment.request import TrainingRequest, check
from throughline.experiment.submitted import carry_out, dataset_for
from throughline.experiment.train import Run
from throughline.foundation.settings import Settings
from throughline.models.description import describe_version
from throughline.records import FeatureStoreRecord, ModelRecord
from throughline.usecase import UseCase

GROUP = "experiments"


def experiments(usecase: UseCase) -> Definitions:
    model = _model(usecase)
    job = define_asset_job(
        f"{usecase.name}_train",
        AssetSelection.assets(model),
        description="Train an experiment; the run's config names rows, trainer and parameters.",
    )
    return Definitions(assets=[model], jobs=[job])


def _model(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "model"],
        group_name=GROUP,
        kinds={"optuna", "onnx", "mlflow"},
        description="The newest model version that was submitted. Nothing is released by it.",
        owners=[f"team:{owner}" for owner in usecase.owners],
        code_version=code_version(("assets.experiments", "throughline.experiment.submitted")),
        ins={"feature_store": record_of(usecase, FEATURES, "feature_store")},
    )
    def model(
        context: AssetExecutionContext,
        config: RequestConfig,
        settings: ResourceParam[Settings],
        launchers: ResourceParam[Launchers],
        feature_store: FeatureStoreRecord,
    ) -> Output[ModelRecord]:
        request = TrainingRequest(usecase=usecase.name, **config.model_dump())
        now = clock_now(settings, usecase)
        check(settings, usecase, request, now)
        dataset = dataset_for(settings, usecase, request, feature_store, now)
        require_columns(usecase, dataset)
        run = Run(settings, log_events(context), launchers=launchers)
        record = carry_out(run, usecase, request, dataset, run_tags(context))
        evaluation = evaluate_candidate(settings, usecase, dataset, record)
        if evaluation.comparison:
            context.log.warning(evaluation.comparison)
        report = {"report": MetadataValue.url(publish(settings, record, evaluation))}
        describe_version(settings, usecase, record, dataset, evaluation, decision=None)
        found = {**dataset_metadata(dataset), **model_metadata(settings, record), **told_of_evaluation(evaluation)}
        return Output(record, metadata=report | found)

    return model
