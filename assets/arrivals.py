"""Arrivals: what brings raw days by itself, on a schedule or because something arrived.

The policy of arrivals is `throughline.sources.arrivals`; here it meets the instance: what is there, what was launched.
Either way a day is brought whole and replaces what was there, so that both may bring the same day. Features of days
that came late are built by the sensor for late rows (`automation.py`).
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
from throughline.sources.arrivals import Outcome, Request, Seen, changed, decide
from throughline.sources.source import Watched, source_of
from throughline.usecase import UseCase
from throughline.usecase.feeds import FilesFeed, PushFeed

AFTER_MIDNIGHT = "15 0 * * *"  # the last rows of a day are on their way for minutes
CATCH_UP = timedelta(days=7)  # days that are missing for longer are for a person, who sees why


def arrivals(usecase: UseCase, settings: Settings) -> Definitions:
    watched = [name for name, table in usecase.sources.tables.items() if isinstance(table.feed, FilesFeed | PushFeed)]
    return Definitions(
        schedules=[daily_schedule(usecase, settings)],
        sensors=[arrivals_sensor(usecase, name) for name in watched],
    )


def daily_schedule(usecase: UseCase, settings: Settings) -> ScheduleDefinition:
    """Shortly after each local midnight, the days of the last week that have ended and are not there, in one run.

    For production, where the data clock is the wall clock: a replay's days end when somebody advances it.
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
            return SkipReason("the data clock is a replay's: `throughline advance` brings its days")
        until = min(usecase.local_day(context.scheduled_execution_time), usecase.replay.end)
        first = max(usecase.first_day(settings), until - CATCH_UP)
        ended = between(first, until)
        daily_tables = [name for name, table in usecase.sources.tables.items() if not table.static]
        there = [_brought(context.instance, usecase, name, first) for name in daily_tables]
        missing = [day for day in ended if not all(day in days for days in there)]
        if not missing:
            return SkipReason(f"every day before {until} is there")
        return RunRequest(run_key=f"{until}", tags=_range(missing[0], missing[-1]))

    return daily


def arrivals_sensor(usecase: UseCase, table: str) -> SensorDefinition:
    """Bring the days of what arrived, each once; a run that failed is tried three times, then when something changes.

    The cursor holds what was seen. A day of which something arrives before it has ended is brought when it has.
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
        assert isinstance(source, Watched)
        seen = Seen.model_validate_json(context.cursor) if context.cursor else Seen()
        parts = source.parts()
        first = usecase.first_day(settings)
        static = usecase.sources.tables[table].static
        # a reference table has no days: it counts as one, which has always ended
        days = {name: {first} if static else source.days(name) for name in changed(seen, parts)}
        today = usecase.local_day(clock_now(settings, usecase))
        until = first + timedelta(days=1) if static else min(today, usecase.replay.end)
        there = set() if context.cursor else _brought(context.instance, usecase, table, first)
        outcome = _outcome(context.instance, key, seen.request)
        now, launch = decide(seen, parts, days, outcome, first, until, there)
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


def _brought(instance: DagsterInstance, usecase: UseCase, table: str, first: date) -> set[date]:
    """The days of a raw table that were brought; of a reference table, the first day."""
    key = AssetKey([usecase.name, GROUP, table])
    if usecase.sources.tables[table].static:
        return {first} if instance.get_latest_materialization_event(key) else set()
    return {date.fromisoformat(day) for day in instance.get_materialized_partitions(key)}


def _range(first: date, last: date) -> dict[str, str]:
    return {tags.RANGE_START: first.isoformat(), tags.RANGE_END: last.isoformat()}


def _tag(key: AssetKey, request: Request) -> str:
    return f"{key.to_user_string()} {request.key}"


def _outcome(instance: DagsterInstance, key: AssetKey, request: Request | None) -> Outcome | None:
    """Of the newest run of a request: somebody may have started it again by hand."""
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
        return f"days {now.request.first} to {now.request.last} are being brought"
    if now.given_up:
        return (
            f"gave up on {len(now.given_up)} days from {now.given_up[0]}: see why their runs failed; a part that "
            "changes is tried again"
        )
    if now.wanted:
        return f"{len(now.wanted)} days from {now.wanted[0]} on have not ended, or lie after `replay.end`"
    return "nothing arrived"
