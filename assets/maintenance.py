"""Maintenance: a nightly job that removes old model versions, files and folders, and compacts tables.

What is removed is decided by `throughline.retention` and `throughline.lakehouse.maintenance`.
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
    """One job for all tables of the home, every night; it waits in the queue of runs, as runs that write tables do."""
    tidy = maintenance_job(list(usecases))
    nightly = ScheduleDefinition(job=tidy, cron_schedule=EVERY_NIGHT, default_status=DefaultScheduleStatus.RUNNING)
    return Definitions(jobs=[tidy], schedules=[nightly])


def maintenance_job(usecases: list[UseCase]) -> JobDefinition:
    @op(description="Remove old model versions, files and folders, and compact tables; fails when pins are unknown.")
    def tidy(context: OpExecutionContext, settings: ResourceParam[Settings]) -> None:
        retention, now = timedelta(days=settings.retention_days), datetime.now(UTC)
        for usecase in usecases:  # first: a version that is removed no longer pins its dataset
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
