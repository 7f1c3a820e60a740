"""Raw: one Delta table per declared source, a partition per local day of knowledge time."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    BackfillPolicy,
    DailyPartitionsDefinition,
    DataVersion,
    Definitions,
    FreshnessPolicy,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    asset,
)

from throughline.experiment.fingerprint import combine, fingerprint_code
from throughline.lakehouse.ingest import Ingested, ingest_days, ingest_static
from throughline.settings import Settings
from throughline.usecase import SourceTable, UseCase, load_object

GROUP = "raw"


def daily(usecase: UseCase) -> DailyPartitionsDefinition:
    return DailyPartitionsDefinition(
        start_date=usecase.replay.start.isoformat(),
        end_date=usecase.replay.end.isoformat(),
        timezone=usecase.timezone,
    )


def raw_assets(usecase: UseCase) -> Definitions:
    # a source's code version is its module: changed parsing makes what it delivered stale
    code_version = fingerprint_code([Path(load_object(usecase.sources.module).__file__)])
    return Definitions(
        assets=[
            _static_table(usecase, name, table, code_version)
            if table.static
            else _daily_table(usecase, name, table, code_version)
            for name, table in usecase.sources.tables.items()
        ]
    )


def _common(usecase: UseCase, name: str, table: SourceTable, code_version: str) -> dict[str, Any]:
    """What every raw table says of itself, daily or static."""
    return {
        "key": [usecase.name, GROUP, name],
        "group_name": GROUP,
        "kinds": {"deltalake", "polars"},
        "description": table.description,
        "owners": [f"team:{owner}" for owner in usecase.owners],
        "code_version": code_version,
    }


def _daily_table(usecase: UseCase, name: str, table: SourceTable, code_version: str) -> AssetsDefinition:
    @asset(
        **_common(usecase, name, table, code_version),
        partitions_def=daily(usecase),
        backfill_policy=BackfillPolicy.single_run(),
        freshness_policy=wall_clock_freshness(table.freshness),
    )
    def ingest(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> MaterializeResult:
        days = [date.fromisoformat(key) for key in context.partition_keys]
        written = ingest_days(settings, usecase, name, min(days), max(days), context.run.run_id)
        return _result(written)

    return ingest


def _static_table(usecase: UseCase, name: str, table: SourceTable, code_version: str) -> AssetsDefinition:
    @asset(**_common(usecase, name, table, code_version))
    def ingest(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> MaterializeResult:
        return _result(ingest_static(settings, usecase, name, context.run.run_id))

    return ingest


def _result(written: Ingested) -> MaterializeResult:
    return MaterializeResult(
        data_version=DataVersion(combine(*written.digests.values())),
        metadata={
            "dagster/row_count": written.rows,
            "delta_version": written.version,
            "days": MetadataValue.int(len(written.digests)),
        },
    )


def wall_clock_freshness(window: timedelta | None) -> FreshnessPolicy | None:
    """A table is late when it was not written for `window`, on the wall clock: the policy is for production.

    A replay moves through days in seconds; there freshness is judged on the data clock (`monitoring.py`).
    """
    return FreshnessPolicy.time_window(fail_window=window) if window else None
