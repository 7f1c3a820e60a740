"""Monitoring: the inference log as it stands, outcomes joined to predictions, calibration on the data clock."""

from datetime import timedelta

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    Definitions,
    Output,
    ResourceParam,
    asset,
    asset_check,
)

from assets.code import code_version
from assets.deployment import GROUP as DEPLOYMENT
from assets.features import GROUP as FEATURES
from assets.raw import GROUP as RAW
from assets.resources import clock_now, record_of
from throughline.events.client import snapshot
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import pin, read
from throughline.monitoring.calibration import judge_calibration
from throughline.monitoring.freshness import judge_freshness
from throughline.monitoring.outcomes import write_outcomes
from throughline.records import CalibrationRecord, InferenceLogRecord, OutcomesRecord
from throughline.registry.versions import champion
from throughline.usecase import UseCase

GROUP = "monitoring"


def monitoring_assets(usecase: UseCase) -> Definitions:
    return Definitions(
        assets=[_inference_log(usecase), _outcomes(usecase), _calibration(usecase)],
        asset_checks=[
            _data_clock_freshness(usecase, name, table.freshness)
            for name, table in usecase.sources.tables.items()
            if table.freshness is not None
        ],
    )


def _inference_log(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "inference_log"],
        group_name=GROUP,
        kinds={"deltalake", "cloudevents"},
        deps=[AssetKey([usecase.name, DEPLOYMENT, "endpoint"])],
        description="Every prediction, written by the collector; this pins the version it had and what was counted.",
        code_version=code_version(("assets.monitoring", "throughline.events.client")),
    )
    def inference_log(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> Output[InferenceLogRecord]:
        record = snapshot(settings, usecase)
        return Output(
            record,
            metadata={
                "table": str(record.table) if record.table else "no event yet",
                "written": record.written,
                "lost": record.lost,
            },
        )

    return inference_log


def _outcomes(usecase: UseCase) -> AssetsDefinition:
    spine = usecase.features.spine

    @asset(
        key=[usecase.name, GROUP, "outcomes"],
        group_name=GROUP,
        kinds={"deltalake", "polars"},
        deps=[AssetKey([usecase.name, FEATURES, spine])],
        description="Predictions and what became of them, by label or report; what never gets a label is only counted.",
        code_version=code_version(
            ("assets.monitoring", "throughline.monitoring.outcomes", "throughline.events.waiting")
        ),
        ins={"inference_log": record_of(usecase, GROUP, "inference_log")},
    )
    def outcomes(
        context: AssetExecutionContext, settings: ResourceParam[Settings], inference_log: InferenceLogRecord
    ) -> Output[OutcomesRecord]:
        record = write_outcomes(
            settings,
            usecase,
            inference_log,
            pin(settings, f"{usecase.name}/{FEATURES}/{spine}"),
            clock_now(settings, usecase),
        )
        return Output(
            record,
            metadata=record.model_dump(mode="json", exclude={"table", "as_of", "log_complete"}),
        )

    return outcomes


def _calibration(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "calibration"],
        group_name=GROUP,
        description="Mean score against outcome rate of the serving version; what the drift sensor reads.",
        code_version=code_version(("assets.monitoring", "throughline.monitoring.calibration")),
        ins={"outcomes": record_of(usecase, GROUP, "outcomes")},
    )
    def calibration(
        context: AssetExecutionContext, settings: ResourceParam[Settings], outcomes: OutcomesRecord
    ) -> Output[CalibrationRecord]:
        serving = champion(settings, usecase.name)
        record = judge_calibration(
            read(settings, outcomes.table).collect(),
            serving.reference if serving else None,
            usecase.monitoring.calibration,
            outcomes.as_of,
            outcomes.log_complete,
        ).model_copy(update={"run_id": context.run.run_id, "trained_until": serving.trained_until if serving else None})
        context.log.info(f"{record.verdict}: {record.reason}")
        return Output(
            record,
            metadata={
                "verdict": record.verdict,
                "reason": record.reason,
                "outcomes": record.outcomes,
                **({"gap": record.gap} if record.gap is not None else {}),
            },
        )

    return calibration


def _data_clock_freshness(usecase: UseCase, table: str, limit: timedelta) -> AssetChecksDefinition:
    @asset_check(
        name="fresh_on_the_data_clock",
        asset=AssetKey([usecase.name, RAW, table]),
        description=f"The newest row became known at most {limit} before the data clock.",
    )
    def fresh(settings: ResourceParam[Settings]) -> AssetCheckResult:
        verdict = judge_freshness(
            read(settings, pin(settings, f"{usecase.name}/{RAW}/{table}")), limit, clock_now(settings, usecase)
        )
        return AssetCheckResult(passed=verdict.fresh, metadata={"newest": verdict.newest, "reason": verdict.reason})

    return fresh
