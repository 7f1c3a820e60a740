"""Batch scores: what falls due on a local day, scored by a pinned model version. Materialised on request only."""

from collections.abc import Iterator
from datetime import date
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    BackfillPolicy,
    Config,
    Definitions,
    Output,
    ResourceParam,
    asset,
)

from assets.code import code_version
from assets.features import GROUP as FEATURES
from assets.raw import daily
from assets.resources import clock_now
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.registry import versions
from throughline.rollout.batch import TOLERANCE, score_days
from throughline.usecase import UseCase

GROUP = "batch"
CHECK = "as_the_endpoint"


class BatchConfig(Config):
    """`version`: of the use case's model; the champion where none is given."""

    version: int | None = None


def batch_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_scores(usecase)])


def _scores(usecase: UseCase) -> AssetsDefinition:
    key = AssetKey([usecase.name, GROUP, "scores"])

    @asset(
        key=key,
        group_name=GROUP,
        kinds={"deltalake", "onnx"},
        partitions_def=daily(usecase),
        backfill_policy=BackfillPolicy.single_run(),
        deps=[AssetKey([usecase.name, FEATURES, name]) for name in ("feature_store", usecase.features.spine)],
        description="Scores of what falls due on a day, with features as known at each prediction time.",
        code_version=code_version(("assets.batch", "throughline.rollout.batch")),
        check_specs=[
            AssetCheckSpec(CHECK, asset=key, description="Equal to the endpoint's for the same rows and features.")
        ],
    )
    def scores(context: AssetExecutionContext, config: BatchConfig, settings: ResourceParam[Settings]) -> Iterator[Any]:
        if config.version is not None:
            model = versions.get(settings, ModelReference(usecase.name, config.version))
        elif (champion := versions.champion(settings, usecase.name)) is not None:
            model = champion
        else:
            raise ThroughlineError(f"{usecase.name} has no champion: name a `version` to score with.")
        days = [date.fromisoformat(day) for day in context.partition_keys]
        record = score_days(
            settings,
            usecase,
            model,
            versions.load(settings, model),
            min(days),
            max(days),
            clock_now(settings, usecase),
            context.run.run_id,
        )
        facts = record.model_dump(mode="json", exclude={"table"})
        yield Output(record, metadata={"table": str(record.table), **{k: v for k, v in facts.items() if v is not None}})
        yield AssetCheckResult(
            check_name=CHECK,
            passed=record.differing == 0,
            severity=AssetCheckSeverity.ERROR if record.compared else AssetCheckSeverity.WARN,
            metadata={"compared": record.compared, "differing": record.differing, "tolerance": TOLERANCE},
            description=None if record.compared else "cannot say: the endpoint predicted none of these rows",
        )

    return scores
