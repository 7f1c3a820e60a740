"""Arrivals: a schedule and sensors that ingest raw days, by the calendar or because rows arrived.

The policy is `throughline.sources.arrivals`; this module reads from the instance what was ingested and launched.
A day is ingested as a whole and replaces what was there, so schedule and sensor may both ingest it. Features of late
days are built by the sensor for late rows (`automation.py`).
"""

from datetime import date, timedelta

from dagster import (
    AssetKey,
    AssetSelection,
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    ResourceParam,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    schedule,
    sensor,
)

from assets.raw import GROUP
from assets.resources import clock_now
from throughline.foundation import tags
from throughline.foundation.days import between
from throughline.foundation.settings import Settings
from throughline.sources.arrivals import ATTEMPTS, Request, RunState, Seen, changed, decide
from throughline.sources.declared import source_of
from throughline.sources.source import Watched
from throughline.usecase import UseCase
from throughline.usecase.feeds import FilesFeed, PushFeed

AFTER_MIDNIGHT = "15 0 * * *"  # the last rows of a day take minutes to arrive
CATCH_UP = timedelta(days=7)  # a day that is missing for longer needs a person to find out why


def arrivals(usecase: UseCase, settings: Settings) -> Definitions:
    watched = [name for name, table in usecase.sources.tables.items() if isinstance(table.feed, FilesFeed | PushFeed)]
    return Definitions(
        schedules=[daily_schedule(usecase, settings)],
        sensors=[arrivals_sensor(usecase, name) for name in watched],
    )


def daily_schedule(usecase: UseCase, settings: Settings) -> ScheduleDefinition:
    """Ingests, shortly after each local midnight, the missing days of the last week in one run.

    For production, where the data clock is the wall clock; a replay ingests days when it advances.
    """

    @schedule(
        name=f"{usecase.name}_daily",
        job_name=f"{usecase.name}_ingest",
        cron_schedule=AFTER_MIDNIGHT,
        execution_timezone=usecase.timezone,
        default_status=DefaultScheduleStatus.RUNNING if settings.clock == "wall" else DefaultScheduleStatus.STOPPED,
        description=daily_schedule.__doc__,
    )
    def daily(context: ScheduleEvaluationContext, settings: ResourceParam[Settings]) -> RunRequest | SkipReason:
        if settings.clock != "wall":
            return SkipReason("the data clock is a replay's: `throughline advance` ingests its days")
        until = min(usecase.local_day(context.scheduled_execution_time), usecase.replay.end)
        first = max(usecase.first_day(settings), until - CATCH_UP)
        ended = between(first, until)
        daily_tables = [name for name, table in usecase.sources.tables.items() if not table.static]
        ingested = [_ingested(context.instance, usecase, name, first) for name in daily_tables]
        missing = [day for day in ended if not all(day in days for days in ingested)]
        if not missing:
            return SkipReason(f"every day before {until} was ingested")
        return RunRequest(run_key=f"{until}", tags=_range(missing[0], missing[-1]))

    return daily


def arrivals_sensor(usecase: UseCase, table: str) -> SensorDefinition:
    """Ingests the days of rows that arrived, each once; a failed run is tried three times, then after the next change.

    The cursor holds what was seen. A day whose rows arrive before it has ended is ingested when it has.
    """
    key = AssetKey([usecase.name, GROUP, table])

    @sensor(
        name=f"{usecase.name}_{table}_arrivals",
        target=AssetSelection.assets(key),
        minimum_interval_seconds=30,
        default_status=DefaultSensorStatus.RUNNING,
        description=arrivals_sensor.__doc__,
    )
    def arrived(context: SensorEvaluationContext, settings: ResourceParam[Settings]) -> SensorResult | SkipReason:
        source = source_of(settings, usecase, table)
        assert isinstance(source, Watched)  # FileSource and PushSource are
        seen = Seen.model_validate_json(context.cursor) if context.cursor else Seen()
        parts = source.parts()
        first = usecase.first_day(settings)
        static = usecase.sources.tables[table].static
        # a reference table has no days: it counts as one, which has always ended
        days = {name: {first} if static else source.days(name) for name in changed(seen, parts)}
        today = usecase.local_day(clock_now(settings, usecase))
        until = first + timedelta(days=1) if static else min(today, usecase.replay.end)
        ingested = set() if context.cursor else _ingested(context.instance, usecase, table, first)
        state = _state(context.instance, key, seen.request)
        now, launch = decide(seen, parts, days, state, first, until, ingested)
        cursor = now.model_dump_json()
        if launch is None:
            reason = SkipReason(_why_not(now))
            return reason if context.cursor and now == seen else SensorResult(skip_reason=reason, cursor=cursor)
        request = RunRequest(
            run_key=launch.key,
            tags={
                tags.ARRIVAL: _tag(key, launch),
                tags.CAUSE: f"rows of {launch.first} to {launch.last} arrived, attempt {launch.attempt}",
                **({} if static else _range(launch.first, launch.last)),
            },
        )
        return SensorResult(run_requests=[request], cursor=cursor)

    return arrived


def _ingested(instance: DagsterInstance, usecase: UseCase, table: str, first: date) -> set[date]:
    """The days of a raw table that were ingested; of a reference table, the first day."""
    key = AssetKey([usecase.name, GROUP, table])
    if usecase.sources.tables[table].static:
        return {first} if instance.get_latest_materialization_event(key) else set()
    return {date.fromisoformat(day) for day in instance.get_materialized_partitions(key)}


def _range(first: date, last: date) -> dict[str, str]:
    return {tags.RANGE_START: first.isoformat(), tags.RANGE_END: last.isoformat()}


def _tag(key: AssetKey, request: Request) -> str:
    return f"{key.to_user_string()} {request.key}"


def _state(instance: DagsterInstance, key: AssetKey, request: Request | None) -> RunState | None:
    """Of the newest run of a request, which a person may have started again."""
    if request is None:
        return None
    runs = instance.get_runs(filters=RunsFilter(tags={tags.ARRIVAL: _tag(key, request)}), limit=1)
    if not runs:
        return "never_started"
    if not runs[0].is_finished:
        return "under_way"
    return "succeeded" if runs[0].status == DagsterRunStatus.SUCCESS else "failed"


def _why_not(now: Seen) -> str:
    if now.request is not None:
        return f"days {now.request.first} to {now.request.last} are being ingested"
    if now.given_up:
        return (
            f"{len(now.given_up)} days from {now.given_up[0]} on failed {ATTEMPTS} times: correct what their runs "
            "report; a part that changes is tried again"
        )
    if now.wanted:
        return f"{len(now.wanted)} days from {now.wanted[0]} on have not ended, or lie after `replay.end`"
    return "nothing arrived"
