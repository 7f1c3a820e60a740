"""The tables of what validation found: quarantined rows, statistics per day, and the newest verdict on each day.

Owns: `USECASE/quarantine/TABLE`, `USECASE/statistics/TABLE` and `USECASE/verdicts/TABLE`, by day, for the raw table
TABLE. Does not own: any verdict (`judge.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta

import polars as pl

from throughline.foundation.days import spans
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, INSTANT, find_pin, pin, read, replace_days
from throughline.usecase import CONTRACT, UseCase
from throughline.validation.judge import REASONS, DayVerdict
from throughline.validation.statistics import SCHEMA

QUARANTINE, STATISTICS, VERDICTS = "quarantine", "statistics", "verdicts"

_VERDICTS = pl.Schema(
    {
        DAY: pl.Date,
        "accepted": pl.Boolean,
        "reason": pl.String,
        "rows": pl.Int64,
        "bad": pl.Int64,
        "verdicts": pl.List(pl.Struct({"aspect": pl.String, "result": pl.String, "detail": pl.String})),
    }
)


def write_quarantine(
    settings: Settings, usecase: UseCase, table: str, rows: pl.DataFrame, days: Sequence[date], run: pl.Expr
) -> TableReference | None:
    """Replace the quarantine of `days` by `rows` (with `day` and `reasons`), each as JSON in `row`, with its event and
    knowledge time. None when the table never had a row."""
    first, last = min(days), max(days)
    held = _held(settings, usecase, QUARANTINE, table)
    in_days = pl.col(DAY).is_between(first, last)
    if rows.height or (held is not None and held.filter(in_days).select(pl.len()).collect().item()):
        content = [json.dumps(row, default=str) for row in rows.drop(DAY, REASONS).iter_rows(named=True)]
        known = [name for name in CONTRACT if getattr(rows.schema.get(name), "time_zone", None) == "UTC"]
        times = [(pl.col(name) if name in known else pl.lit(None)).cast(INSTANT).alias(name) for name in CONTRACT]
        kept = rows.select(DAY, *times, REASONS, pl.Series("row", content, pl.String), run)
        replace_days(settings.table_path(usecase.name, QUARANTINE, table), kept, first, last)
    elif held is None:
        return None
    return pin(settings, f"{usecase.name}/{QUARANTINE}/{table}")


def write_statistics(
    settings: Settings, usecase: UseCase, table: str, statistics: pl.DataFrame, days: Collection[date], run: pl.Expr
) -> None:
    """Replace the statistics of `days` by rows of `statistics.SCHEMA`; other days are untouched."""
    rows = _stamped(usecase, statistics, run)
    for first, last in spans(days):
        part = rows.filter(pl.col(DAY).is_between(first, last))
        replace_days(settings.table_path(usecase.name, STATISTICS, table), part, first, last)


def read_statistics(settings: Settings, usecase: UseCase, table: str) -> pl.LazyFrame:
    """Statistics (`statistics.SCHEMA`) of every day of a table, at their current version."""
    held = _held(settings, usecase, STATISTICS, table)
    return SCHEMA.to_frame().lazy() if held is None else held.select(list(SCHEMA))


def write_verdicts(
    settings: Settings, usecase: UseCase, table: str, verdicts: Sequence[DayVerdict], run: pl.Expr
) -> None:
    """Replace the verdicts on these days."""
    records = [{**asdict(verdict), "accepted": verdict.accepted, "reason": verdict.reason} for verdict in verdicts]
    rows = _stamped(usecase, pl.DataFrame(records, schema=_VERDICTS), run)
    days = [verdict.day for verdict in verdicts]
    replace_days(settings.table_path(usecase.name, VERDICTS, table), rows, min(days), max(days))


def refused_days(settings: Settings, usecase: UseCase, table: str) -> dict[date, str]:
    """Days of a raw table whose newest delivery was refused, oldest first -> the reason."""
    held = _held(settings, usecase, VERDICTS, table)
    if held is None:
        return {}
    return dict(held.filter(~pl.col("accepted")).select(DAY, "reason").sort(DAY).collect().iter_rows())


def refusal(table: str, refused: Mapping[date, str], consequence: str = "") -> str:
    """One line on the refused days of USECASE/raw/TABLE, the first with its reason: what to do."""
    (day, reason), *others = refused.items()
    more = f" and {len(others)} more" if others else ""
    return (
        f"{table} {day}{more} was refused ({reason}){consequence}: correct the source, or `expects` in "
        f"usecases/{table.partition('/')[0]}.yaml, and materialise the day again."
    )


def require_good_days(settings: Settings, usecase: UseCase) -> None:
    """Raises while the newest delivery of any day is refused, also in later runs that do not ingest raw tables."""
    for table in usecase.sources.tables:
        if refused := refused_days(settings, usecase, table):
            raise ThroughlineError(refusal(f"{usecase.name}/raw/{table}", refused))


def _held(settings: Settings, usecase: UseCase, layer: str, table: str) -> pl.LazyFrame | None:
    """The rows at the current version; None when the table was never written."""
    pinned = find_pin(settings, f"{usecase.name}/{layer}/{table}")
    return None if pinned is None else read(settings, pinned)


def _stamped(usecase: UseCase, rows: pl.DataFrame, run: pl.Expr) -> pl.DataFrame:
    """With the columns of every table: the event time is the beginning of the day, the knowledge time its end."""
    begins = pl.col(DAY).map_elements(usecase.day_start, INSTANT)
    ends = (pl.col(DAY) + timedelta(days=1)).map_elements(usecase.day_start, INSTANT)
    return rows.with_columns(begins.alias("event_time"), ends.alias("available_at"), run)
