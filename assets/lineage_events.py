"""Sends what runs do to an OpenLineage receiver, where one is set: each step's start, end, inputs and outputs.

Owns: reading runs. The start of a run is sent at once, its steps when it has ended, from its event log by sensors of
the daemon: no step waits for the receiver or fails with it. Does not own: an event's form (`lineage/openlineage.py`).
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

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

ENDED: dict[DagsterRunStatus, Literal["COMPLETE", "FAIL", "ABORT"]] = {
    DagsterRunStatus.SUCCESS: "COMPLETE",
    DagsterRunStatus.FAILURE: "FAIL",
    DagsterRunStatus.CANCELED: "ABORT",
}
_READ_EVENTS = {
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
    def send_run(context: RunStatusSensorContext) -> SkipReason:
        run = context.dagster_run
        record = context.instance.get_run_record_by_id(run.run_id)
        if record is None or record.start_time is None:
            return SkipReason(f"run {run.run_id} never began: {status.value.lower()}")
        entries = context.instance.all_logs(run.run_id, of_type=_READ_EVENTS) if status in ENDED else []
        steps = steps_of(run, entries)
        problem = send(settings, [*steps, whole(run, status, record.start_time, record.end_time, steps)])
        if problem:
            context.log.warning(f"Run {run.run_id} was not fully sent: {problem}")
        return SkipReason(problem or f"run {run.run_id} sent: {status.value.lower()}, {len(steps)} steps")

    return send_run


def whole(
    run: DagsterRun, status: DagsterRunStatus, began: float, ended: float | None, steps: Iterable[StepRun]
) -> StepRun:
    """The run itself with the `status` that is sent: a run that has just started may have ended by then."""
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
    """The steps that began, in that order, with the inputs and outputs that their materializations name."""
    started: dict[str, EventLogEntry] = {}
    ended: dict[str, EventLogEntry] = {}
    made: dict[str, list[AssetMaterialization]] = {}
    for entry in entries:
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        if event.event_type == DagsterEventType.STEP_START:
            started.setdefault(event.step_key, entry)
        elif event.event_type == DagsterEventType.ASSET_MATERIALIZATION:
            made.setdefault(event.step_key, []).append(event.step_materialization_data.materialization)
        else:
            ended[event.step_key] = entry
    last = max((entry.timestamp for entry in (*started.values(), *ended.values())), default=0.0)
    return [_step(run, step, entry, ended.get(step), made.get(step, []), last) for step, entry in started.items()]


def _step(
    run: DagsterRun,
    step: str,
    start: EventLogEntry,
    end: EventLogEntry | None,
    made: list[AssetMaterialization],
    last: float,
) -> StepRun:
    """A step without an end was cut off with its run, at the latest at `last`."""
    last_event = end.dagster_event if end else None
    succeeded = last_event is not None and last_event.is_step_success
    otherwise = "ABORT" if run.status == DagsterRunStatus.CANCELED else "FAIL"
    failure = last_event.step_failure_data if last_event and last_event.is_step_failure else None
    error = failure.error if failure else None
    cause = error.cause if error and error.cause else error
    return StepRun(
        run_id=run.run_id,
        job=run.job_name,
        step=step,
        started=_instant(start.timestamp),
        ended=_instant(end.timestamp if end else last),
        state="COMPLETE" if succeeded else otherwise,
        error=cause.message.strip().partition("\n")[0] if cause else None,
        inputs=_inputs(made),
        outputs=_outputs(made),
    )


def _outputs(made: list[AssetMaterialization]) -> list[Table]:
    """Each asset once, by its last materialization."""
    found: dict[str, str | None] = {}
    for each in made:
        version = each.metadata.get("delta_version")
        stated = version.value if version is not None else (each.tags or {}).get("dagster/data_version")
        found[each.asset_key.to_user_string()] = None if stated is None else str(stated)
    return [Table(name, version) for name, version in found.items()]


def _inputs(made: list[AssetMaterialization]) -> list[Table]:
    """What was read, at the table version that the asset's metadata names, otherwise by its data version."""
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
