"""Raw: one Delta table per declared source, a partition per local day of knowledge time.

A day that breaks its declaration is refused, and its step fails, so that nothing that depends on it runs. A failed
blocking check would not be enough: it does not stop every kind of asset downstream.
"""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
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

from assets.columns import declared_columns
from assets.resources import as_of
from assets.validation import check_results, check_specs
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine
from throughline.foundation.settings import Settings
from throughline.ingestion.ingest import Ingested, ingest_days, ingest_static
from throughline.sources.declared import source_fingerprint
from throughline.usecase import SourceTable, UseCase

GROUP = "raw"


def daily(usecase: UseCase) -> DailyPartitionsDefinition:
    return DailyPartitionsDefinition(
        start_date=usecase.replay.start.isoformat(),
        end_date=usecase.replay.end.isoformat(),
        timezone=usecase.timezone,
    )


def raw_assets(usecase: UseCase) -> Definitions:
    return Definitions(
        assets=[
            (_static_table if table.static else _daily_table)(usecase, name, table, _code_version(usecase, name, table))
            for name, table in usecase.sources.tables.items()
        ]
    )


def _code_version(usecase: UseCase, name: str, table: SourceTable) -> str:
    """Changes with the source, its code, and the rules for rows."""
    return combine(source_fingerprint(usecase, name), _content_rules(table))


def _content_rules(table: SourceTable) -> str:
    """The rules for rows decide what a table holds; rules for days only whether it is accepted."""
    rules = table.expects.model_dump(mode="json", include={"columns"}) if table.expects else None
    return json.dumps([table.key, rules], sort_keys=True)


def _common(usecase: UseCase, name: str, table: SourceTable, code_version: str) -> dict[str, Any]:
    """Arguments of every raw asset, daily or static."""
    key = AssetKey([usecase.name, GROUP, name])
    return {
        "key": key,
        "group_name": GROUP,
        "kinds": {"deltalake", "polars"},
        "description": table.description,
        "owners": [f"team:{owner}" for owner in usecase.owners],
        "code_version": code_version,
        "check_specs": check_specs(key, table),
        "metadata": declared_columns(table),
    }


def _daily_table(usecase: UseCase, name: str, table: SourceTable, code_version: str) -> AssetsDefinition:
    @asset(
        **_common(usecase, name, table, code_version),
        partitions_def=daily(usecase),
        backfill_policy=BackfillPolicy.single_run(),
        freshness_policy=wall_clock_freshness(table.freshness),
    )
    def ingest(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> Iterator[Any]:
        days = [date.fromisoformat(key) for key in context.partition_keys]
        written = ingest_days(
            settings, usecase, name, min(days), max(days), context.run.run_id, as_of(context, settings, usecase)
        )
        yield from check_results(context.asset_key, table, written)
        if written.refused:
            # the other days of the range are written: they need no retry
            for day, digest in written.digests.items():
                yield AssetMaterialization(
                    context.asset_key,
                    partition=day.isoformat(),
                    metadata=_metadata(written),
                    tags={
                        "dagster/code_version": code_version,
                        "dagster/data_version": combine(digest),
                        "dagster/data_version_is_user_provided": "true",
                    },
                )
            raise ThroughlineError(written.refusal)
        for day, verdict in written.judgement.days.items():
            context.add_asset_metadata(
                {"delivered_rows": verdict.rows, "quarantined_rows": verdict.bad}, partition_key=day.isoformat()
            )
        yield _result(written)

    return ingest


def _static_table(usecase: UseCase, name: str, table: SourceTable, code_version: str) -> AssetsDefinition:
    @asset(**_common(usecase, name, table, code_version))
    def ingest(context: AssetExecutionContext, settings: ResourceParam[Settings]) -> Iterator[Any]:
        written = ingest_static(settings, usecase, name, context.run.run_id)
        yield from check_results(context.asset_key, table, written)
        if written.refused:
            raise ThroughlineError(written.refusal)
        yield _result(written)

    return ingest


def _result(written: Ingested) -> MaterializeResult:
    return MaterializeResult(data_version=DataVersion(combine(*written.digests.values())), metadata=_metadata(written))


def _metadata(written: Ingested) -> dict[str, Any]:
    return {
        "dagster/row_count": written.rows,
        "delta_version": written.version,
        "days": MetadataValue.int(len(written.digests)),
        "quarantine": str(written.quarantine or "empty"),
    }


def wall_clock_freshness(window: timedelta | None) -> FreshnessPolicy | None:
    """A table is late when it was not written for `window`, on the wall clock: a policy for production.

    In a replay, which passes days in seconds, freshness is checked on the data clock (`monitoring.py`).
    """
    return FreshnessPolicy.time_window(fail_window=window) if window else None
