"""Bringing a declared source's rows into its Delta table, a local day at a time.

Owns: what a partition is. A day's partition holds what became known on that day (`available_at` in the local day);
the first day also holds what had been delivered before it about that day or later, such as its schedule.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta

import polars as pl

from throughline.lakehouse.table import DAY, replace_all, replace_days
from throughline.settings import Settings
from throughline.usecase import UseCase, load_object

RUN_ID = "ingestion_run_id"


@dataclass(frozen=True)
class Ingested:
    """What one ingestion wrote: the table's new version, rows in all, and a content digest per day."""

    version: int
    rows: int
    digests: dict[date, str]


def read_days(usecase: UseCase, table: str, first: date, last: date, initial: date) -> pl.DataFrame:
    """Rows that belong to the partitions [first, last], with their local `day`; `initial`: the very first partition."""
    source = load_object(usecase.sources.module)
    start = None if first == initial else usecase.day_start(first)
    rows = source.read(table, start, usecase.day_start(last + timedelta(days=1)))
    beginning = usecase.day_start(initial)
    rows = rows.filter((pl.col("available_at") >= beginning) | (pl.col("event_time") >= beginning))
    known_day = pl.col("available_at").dt.convert_time_zone(usecase.timezone).dt.date()
    return rows.with_columns(known_day.clip(lower_bound=initial).alias(DAY))


def ingest_days(settings: Settings, usecase: UseCase, table: str, first: date, last: date, run_id: str) -> Ingested:
    """Write the partitions [first, last] of a daily table in one commit; written twice, the content is the same."""
    rows = read_days(usecase, table, first, last, usecase.first_day(settings))
    version = replace_days(
        settings.table_path(usecase.name, "raw", table), rows.with_columns(pl.lit(run_id).alias(RUN_ID)), first, last
    )
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    parts = {key[0]: part for key, part in rows.partition_by(DAY, as_dict=True).items()}
    return Ingested(version, rows.height, {day: content_digest(parts.get(day, rows.clear())) for day in days})


def ingest_static(settings: Settings, usecase: UseCase, table: str, run_id: str) -> Ingested:
    """Write a reference table whole."""
    first = usecase.first_day(settings)
    rows = load_object(usecase.sources.module).read(table, None, usecase.clock_start(settings))
    version = replace_all(
        settings.table_path(usecase.name, "raw", table), rows.with_columns(pl.lit(run_id).alias(RUN_ID))
    )
    return Ingested(version, rows.height, {first: content_digest(rows)})


def content_digest(rows: pl.DataFrame) -> str:
    """Digest of the rows as they stand; the source's order is part of its contract."""
    return hashlib.sha256(rows.write_csv().encode()).hexdigest()[:16]
