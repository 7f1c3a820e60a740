"""Automation: the jobs that people and sensors start, the sensor for late rows and the sensor that retrains.

Owns: what each sensor reads and requests. Does not own: when to retrain (`throughline.monitoring.triggers`).
"""

import json
from datetime import datetime
from typing import Literal

from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    Definitions,
    ResourceParam,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    define_asset_job,
    sensor,
)
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.catalogue import profile_key
from assets.deployment import GROUP as DEPLOYMENT
from assets.evaluation import GROUP as EVALUATION
from assets.features import GROUP as FEATURES
from assets.monitoring import GROUP as MONITORING
from assets.raw import GROUP as RAW
from assets.training import GROUP as TRAINING
from throughline.featurestore import dbt
from throughline.featurestore.incremental import plan_late, source_versions
from throughline.foundation import tags
from throughline.foundation.fingerprint import combine
from throughline.foundation.settings import Settings
from throughline.monitoring.triggers import Retraining, decide_retraining
from throughline.records import CalibrationRecord
from throughline.records.store import find_record
from throughline.usecase import UseCase

HISTORY = 50
LATE_ROWS_ATTEMPTS = 3
UNDER_WAY = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]


def automation(usecase: UseCase) -> Definitions:
    return Definitions(
        jobs=[
            ingest_job(usecase),
            _job(usecase, "monitor", AssetSelection.key_prefixes([usecase.name, MONITORING])),
            _job(usecase, "features", _features(usecase)),
            retrain_job(usecase),
        ],
        sensors=[late_rows_sensor(usecase), drift_sensor(usecase)],
    )


def ingest_job(usecase: UseCase) -> UnresolvedAssetJobDefinition:
    """One day's deliveries, and the features and stores that follow from them."""
    rooms = AssetSelection.key_prefixes([usecase.name, RAW]) | _features(usecase)
    static = [[usecase.name, RAW, name] for name, table in usecase.sources.tables.items() if table.static]
    return _job(usecase, "ingest", rooms - AssetSelection.assets(*map(AssetKey, static)), ingest_job.__doc__)


def retrain_job(usecase: UseCase) -> UnresolvedAssetJobDefinition:
    """A new dataset, a candidate trained on it, its evaluation, and a new revision if the gate releases it."""
    rooms = [[usecase.name, room] for room in (TRAINING, EVALUATION, DEPLOYMENT)]
    return _job(usecase, "retrain", AssetSelection.key_prefixes(*rooms), retrain_job.__doc__)


def _features(usecase: UseCase) -> AssetSelection:
    """The features room, without what is made of whole tables once a night."""
    return AssetSelection.key_prefixes([usecase.name, FEATURES]) - AssetSelection.assets(profile_key(usecase))


def _job(
    usecase: UseCase, name: str, selection: AssetSelection, description: str | None = None
) -> UnresolvedAssetJobDefinition:
    return define_asset_job(f"{usecase.name}_{name}", selection, description=description)


def late_rows_sensor(usecase: UseCase) -> SensorDefinition:
    """Rebuild the days of features whose source rows came late or were corrected, once per change.

    A daily run brings a day's rows and features together; this is for rows that arrived outside of one. It waits while
    any run is under way, which may be about to build them.
    """

    @sensor(
        name=f"{usecase.name}_late_rows",
        job_name=f"{usecase.name}_features",
        minimum_interval_seconds=30,
        default_status=DefaultSensorStatus.RUNNING,
        description=late_rows_sensor.__doc__,
    )
    def late_rows(context: SensorEvaluationContext, settings: ResourceParam[Settings]) -> SensorResult | SkipReason:
        pins = source_versions(settings, usecase)
        seen = json.dumps(pins, sort_keys=True)
        if pins is None or seen == context.cursor:
            return SkipReason("no source was written since")
        if context.instance.get_run_records(RunsFilter(statuses=UNDER_WAY), limit=1):
            return SkipReason("a run is under way")
        builds = plan_late(settings, usecase, dbt.manifest(settings), pins)
        days = [day for build in builds.values() for day in build.days]
        if not days:
            return SensorResult(skip_reason=SkipReason("the features of every source row are built"), cursor=seen)
        first, last = min(days).isoformat(), max(days).isoformat()
        attempts = context.instance.get_runs_count(RunsFilter(tags={tags.LATE_ROWS: combine(usecase.name, seen)}))
        if attempts >= LATE_ROWS_ATTEMPTS:
            return SkipReason(
                f"{attempts} runs failed to build days {first} to {last}: read their logs, then build them"
            )
        request = RunRequest(
            run_key=f"{combine(usecase.name, seen)}-{attempts}",
            tags={
                tags.LATE_ROWS: combine(usecase.name, seen),
                tags.CAUSE: f"source rows of days {first} to {last} came late or were corrected",
                tags.RANGE_START: first,
                tags.RANGE_END: last,
            },
        )
        return SensorResult(run_requests=[request])

    return late_rows


def drift_sensor(usecase: UseCase) -> SensorDefinition:
    """Retrain when the serving model is out of calibration or too old: one run per cause, which its tags name."""
    calibration = AssetKey([usecase.name, MONITORING, "calibration"])

    @sensor(
        name=f"{usecase.name}_drift",
        job_name=f"{usecase.name}_retrain",
        minimum_interval_seconds=10,
        default_status=DefaultSensorStatus.RUNNING,
        description=drift_sensor.__doc__,
    )
    def drift(context: SensorEvaluationContext, settings: ResourceParam[Settings]) -> SensorResult | SkipReason:
        record = find_record(settings, tuple(calibration.path), CalibrationRecord)
        if record is None:
            return SkipReason("calibration was never judged")
        # on the evidence alone first: opening the instance for the history costs 0.1 s of a core at every tick
        verdict = decide_retraining(record, [], usecase.monitoring)
        if verdict.retrain:
            event = context.instance.get_latest_materialization_event(calibration)
            if event is None or event.run_id != record.run_id:
                return SkipReason(f"the newest materialisation of calibration is not that of run {record.run_id}")
            verdict = decide_retraining(record, retraining_history(context.instance, usecase), usecase.monitoring)
        # the cursor is the run whose judgement was read last: a replay waits for it
        cursor = record.run_id
        if not verdict.retrain:
            return SensorResult(skip_reason=SkipReason(verdict.reason), cursor=cursor)
        request = RunRequest(
            run_key=verdict.run_key,
            tags={
                tags.RETRAIN: usecase.name,
                tags.CAUSE: verdict.reason,
                tags.WINDOW: verdict.window,
                tags.CLOCK: record.window_until.isoformat(),
            },
        )
        return SensorResult(run_requests=[request], cursor=cursor)

    return drift


def retraining_history(instance: DagsterInstance, usecase: UseCase) -> list[Retraining]:
    """The newest retrainings that this sensor requested, as the trigger policy reads them."""
    states: dict[DagsterRunStatus, Literal["running", "succeeded", "failed"]] = {
        DagsterRunStatus.SUCCESS: "succeeded",
        DagsterRunStatus.FAILURE: "failed",
        DagsterRunStatus.CANCELED: "failed",
    }
    runs = instance.get_runs(filters=RunsFilter(tags={tags.RETRAIN: usecase.name}), limit=HISTORY)
    return [
        Retraining(
            window=run.tags[tags.WINDOW],
            requested_at=datetime.fromisoformat(run.tags[tags.CLOCK]),
            state=states.get(run.status, "running"),
        )
        for run in runs
    ]
