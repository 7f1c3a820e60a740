"""What runs do, told to an OpenLineage receiver where one is set: each step's beginning, end, inputs and outputs.

That a run began is told at once, its steps when it has ended, from its event log and by sensors of the daemon: no step
waits for the receiver, and none fails with it. What an event says is `throughline.lineage.openlineage`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from dagster import (
    AssetMaterialization,
    DagsterEventType,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    Definitions,
    EventLogEntry,
    JsonMetadataValue,
    RunStatusSensorContext,
    SensorDefinition,
    SkipReason,
    run_status_sensor,
)

from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lineage.openlineage import StepRun, Table, send

ENDED = {DagsterRunStatus.SUCCESS: "COMPLETE", DagsterRunStatus.FAILURE: "FAIL", DagsterRunStatus.CANCELED: "ABORT"}
_TOLD = {
    DagsterEventType.STEP_START,
    DagsterEventType.ASSET_MATERIALIZATION,
    DagsterEventType.STEP_SUCCESS,
    DagsterEventType.STEP_FAILURE,
}
_INPUT = "dagster/input_data_version/"
# Metadata of our assets that names the table versions that were read.
_READ = ("inputs", "versions")


def lineage_events(settings: Settings) -> Definitions:
    """A sensor for runs that begin and one per way in which they end; none at all without a receiver."""
    if settings.openlineage_url is None:
        return Definitions()
    return Definitions(sensors=[_sensor(settings, status) for status in (DagsterRunStatus.STARTED, *ENDED)])


def _sensor(settings: Settings, status: DagsterRunStatus) -> SensorDefinition:
    @run_status_sensor(
        run_status=status,
        name=f"openlineage_{status.value.lower()}",
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description=lineage_events.__doc__,
    )
    def tell(context: RunStatusSensorContext) -> SkipReason:
        run = context.dagster_run
        record = context.instance.get_run_record_by_id(run.run_id)
        if record.start_time is None:
            return SkipReason(f"run {run.run_id} never began: {status.value.lower()}")
        entries = context.instance.all_logs(run.run_id, of_type=_TOLD) if status in ENDED else []
        steps = steps_of(run, entries)
        problem = send(settings, [*steps, whole(run, status, record.start_time, record.end_time, steps)])
        if problem:
            context.log.warning(f"Run {run.run_id} is not fully told: {problem}")
        return SkipReason(problem or f"run {run.run_id} told: {status.value.lower()}, {len(steps)} steps")

    return tell


def whole(
    run: DagsterRun, status: DagsterRunStatus, began: float, ended: float | None, steps: Iterable[StepRun]
) -> StepRun:
    """The run itself, `status` being what is told of it: a run that has just begun may have ended when that is told."""
    over = status in ENDED and ended is not None
    return StepRun(
        run_id=run.run_id,
        job=run.job_name,
        step=None,
        started=_instant(began),
        ended=_instant(ended) if over else None,
        state=ENDED[status] if over else None,
        error=next((step.error for step in steps if step.error), None),
    )


def steps_of(run: DagsterRun, entries: Iterable[EventLogEntry]) -> list[StepRun]:
    """The steps that began, in that order, with what their materializations say of inputs and outputs."""
    started: dict[str, EventLogEntry] = {}
    ended: dict[str, EventLogEntry] = {}
    made: dict[str, list[AssetMaterialization]] = {}
    for entry in entries:
        event = entry.dagster_event
        if event.event_type == DagsterEventType.STEP_START:
            started.setdefault(event.step_key, entry)
        elif event.event_type == DagsterEventType.ASSET_MATERIALIZATION:
            made.setdefault(event.step_key, []).append(event.step_materialization_data.materialization)
        else:
            ended[event.step_key] = entry
    last = max((entry.timestamp for entry in (*started.values(), *ended.values())), default=0.0)
    return [_step(run, entry, ended.get(step), made.get(step, []), last) for step, entry in started.items()]


def _step(
    run: DagsterRun, start: EventLogEntry, end: EventLogEntry | None, made: list[AssetMaterialization], last: float
) -> StepRun:
    """A step that never said how it ended was cut off with its run, at the latest at `last`."""
    succeeded = end is not None and end.dagster_event.is_step_success
    otherwise = "ABORT" if run.status == DagsterRunStatus.CANCELED else "FAIL"
    failure = end.dagster_event.step_failure_data if end and end.dagster_event.is_step_failure else None
    error = failure.error if failure else None
    cause = error.cause if error and error.cause else error
    return StepRun(
        run_id=run.run_id,
        job=run.job_name,
        step=start.dagster_event.step_key,
        started=_instant(start.timestamp),
        ended=_instant(end.timestamp if end else last),
        state="COMPLETE" if succeeded else otherwise,
        error=cause.message.strip().partition("\n")[0] if cause else None,
        inputs=_inputs(made),
        outputs=_outputs(made),
    )


def _outputs(made: list[AssetMaterialization]) -> list[Table]:
    """Each asset once, by the last that was said of it."""
    found: dict[str, str | None] = {}
    for each in made:
        version = each.metadata.get("delta_version")
        stated = version.value if version is not None else (each.tags or {}).get("dagster/data_version")
        found[each.asset_key.to_user_string()] = None if stated is None else str(stated)
    return [Table(name, version) for name, version in found.items()]


def _inputs(made: list[AssetMaterialization]) -> list[Table]:
    """What Dagster knows was read, at the table version where the asset says it, otherwise by its data version."""
    found: dict[str, str] = {}
    for each in made:
        for tag, version in (each.tags or {}).items():
            if tag.startswith(_INPUT):
                found.setdefault(tag.removeprefix(_INPUT), version)
    for each in made:
        found |= _versions_read(each)
    return [Table(name, version) for name, version in sorted(found.items())]


def _versions_read(made: AssetMaterialization) -> dict[str, str]:
    pinned = [TableReference.parse(text) for key in _READ for text in _json(made, key)]
    tables = {each.table: str(each.version) for each in pinned}
    raw = f"{made.asset_key.path[0]}/raw"
    return tables | {f"{raw}/{name}": str(version) for name, version in dict(_json(made, "read_versions")).items()}


def _json(made: AssetMaterialization, key: str) -> Any:
    value = made.metadata.get(key)
    return value.data or [] if isinstance(value, JsonMetadataValue) else []


def _instant(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)
