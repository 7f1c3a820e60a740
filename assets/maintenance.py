"""Maintenance: once a day the tables are compacted and what nothing needs any more is removed.

What is pinned, and what removal means, is `throughline.lakehouse.maintenance` and, for model versions,
`throughline.retention.models`; here they meet the schedule.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from dagster import (
    DefaultScheduleStatus,
    Definitions,
    JobDefinition,
    OpExecutionContext,
    ResourceParam,
    ScheduleDefinition,
    job,
    op,
)

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.maintenance import maintain
from throughline.retention.models import apply as remove_old_versions
from throughline.retention.runs import remove_old_runs
from throughline.retention.tables import collect_pins
from throughline.usecase import UseCase

EVERY_NIGHT = "30 3 * * *"  # UTC


def maintenance(usecases: Iterable[UseCase]) -> Definitions:
    """One job for all tables of the home, and when it runs; it shares the queue of runs with who writes them."""
    tidy = maintenance_job(list(usecases))
    nightly = ScheduleDefinition(job=tidy, cron_schedule=EVERY_NIGHT, default_status=DefaultScheduleStatus.RUNNING)
    return Definitions(jobs=[tidy], schedules=[nightly])


def maintenance_job(usecases: list[UseCase]) -> JobDefinition:
    @op(description="Remove old versions, files and folders, and compact; nothing when it is unknown what is pinned.")
    def tidy(context: OpExecutionContext, settings: ResourceParam[Settings]) -> None:
        retention, now = timedelta(days=settings.retention_days), datetime.now(UTC)
        for usecase in usecases:  # first: a version that goes no longer pins what it was trained on
            for line in remove_old_versions(settings, usecase.name, now):
                context.log.info(line)
        pins = collect_pins(settings, usecases)
        done = maintain(settings, pins, retention, now, context.log.info)
        context.log.info(f"{remove_old_runs(settings, retention, now)} folders of past runs removed")
        if failed := [str(table) for table in done if table.failure]:
            raise ThroughlineError(f"{len(failed)} tables could not be maintained: {'; '.join(failed)}")

    @job(name="maintenance", description=maintenance.__doc__)
    def tidied() -> None:
        tidy()

    return tidied
