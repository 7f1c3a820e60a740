"""What validation found, kept in Delta: quarantined rows, statistics per day, and the newest verdict on each day.

Owns: `USECASE/quarantine/TABLE`, `USECASE/statistics/TABLE` and `USECASE/verdicts/TABLE`. Each has the days of the raw
table TABLE and is written as it is, a day at a time, idempotently. Does not own: any verdict (`judge.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import date, timedelta

import polars as pl

from throughline.foundation.days import spans
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, current_version, pin, read, replace_days
from throughline.usecase import CONTRACT, UseCase
from throughline.validation.judge import REASONS, DayVerdict
from throughline.validation.statistics import SCHEMA

QUARANTINE, STATISTICS, VERDICTS = "quarantine", "statistics", "verdicts"

_INSTANT = pl.Datetime("us", "UTC")
_VERDICTS = pl.Schema(
    {
        DAY: pl.Date,
        "accepted": pl.Boolean,
        "reason": pl.String,
        "rows": pl.Int64,
        "bad": pl.Int64,
        "verdicts": pl.List(pl.Struct({"aspect": pl.String, "outcome": pl.String, "detail": pl.String})),
    }
)


def write_quarantine(
    settings: Settings, usecase: UseCase, table: str, rows: pl.DataFrame, days: Sequence[date], run: pl.Expr
) -> TableReference | None:
    """Keep `rows` (with `day` and `reasons`) as all that `days` have in quarantine; None when nothing ever was there.

    A row is kept as JSON under `row`: it must find room whatever shape it came in. Its knowledge time stands beside it.
    """
    first, last = min(days), max(days)
    held = _held(settings, usecase, QUARANTINE, table)
    in_days = pl.col(DAY).is_between(first, last)
    if rows.height or (held is not None and held.filter(in_days).select(pl.len()).collect().item()):
        content = [json.dumps(row, default=str) for row in rows.drop(DAY, REASONS).iter_rows(named=True)]
        known = [name for name in CONTRACT if getattr(rows.schema.get(name), "time_zone", None) == "UTC"]
        times = [(pl.col(name) if name in known else pl.lit(None)).cast(_INSTANT).alias(name) for name in CONTRACT]
        kept = rows.select(DAY, *times, REASONS, pl.Series("row", content, pl.String), run)
        replace_days(settings.table_path(usecase.name, QUARANTINE, table), kept, first, last)
    elif held is None:
        return None
    return pin(settings, f"{usecase.name}/{QUARANTINE}/{table}")


def write_statistics(
    settings: Settings, usecase: UseCase, table: str, statistics: pl.DataFrame, days: Collection[date], run: pl.Expr
) -> None:
    """Keep rows of `statistics.SCHEMA` as all there is about `days`; other days are untouched."""
    rows = _stamped(usecase, statistics, run)
    for first, last in spans(days):
        part = rows.filter(pl.col(DAY).is_between(first, last))
        replace_days(settings.table_path(usecase.name, STATISTICS, table), part, first, last)


def read_statistics(settings: Settings, usecase: UseCase, table: str) -> pl.LazyFrame:
    """Statistics (`statistics.SCHEMA`) of every day of a table, at the version they have now."""
    held = _held(settings, usecase, STATISTICS, table)
    return SCHEMA.to_frame().lazy() if held is None else held.select(list(SCHEMA))


def write_verdicts(
    settings: Settings, usecase: UseCase, table: str, verdicts: Sequence[DayVerdict], run: pl.Expr
) -> None:
    """Keep what was said of each day, which replaces what was said of it before."""
    said = [
        {
            DAY: day.day,
            "accepted": day.accepted,
            "reason": day.reason,
            "rows": day.rows,
            "bad": day.bad,
            "verdicts": [asdict(verdict) for verdict in day.verdicts],
        }
        for day in verdicts
    ]
    rows = _stamped(usecase, pl.DataFrame(said, schema=_VERDICTS), run)
    replace_days(settings.table_path(usecase.name, VERDICTS, table), rows, rows[DAY].min(), rows[DAY].max())


def refused_days(settings: Settings, usecase: UseCase, table: str) -> dict[date, str]:
    """Days of a raw table whose newest delivery was refused, oldest first, each with the reason."""
    held = _held(settings, usecase, VERDICTS, table)
    if held is None:
        return {}
    return dict(held.filter(~pl.col("accepted")).select(DAY, "reason").sort(DAY).collect().iter_rows())


def require_good_days(settings: Settings, usecase: UseCase) -> None:
    """Raises while any day's newest delivery stands refused: what depends on raw tables fails closed, also on its own.

    The run that brought the day has failed, but a later one that does not select the raw tables would not know.
    """
    for table in usecase.sources.tables:
        refused = refused_days(settings, usecase, table)
        if refused:
            day, reason = next(iter(refused.items()))
            more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
            raise ThroughlineError(
                f"{usecase.name}/raw/{table} {day}{more} was refused ({reason}): correct the source, or `expects` in "
                f"usecases/{usecase.name}.yaml, and materialise the day again before what depends on it."
            )


def _held(settings: Settings, usecase: UseCase, layer: str, table: str) -> pl.LazyFrame | None:
    """The table as it stands now, at that version; None when it was never written."""
    if current_version(settings.table_path(usecase.name, layer, table)) is None:
        return None
    return read(settings, pin(settings, f"{usecase.name}/{layer}/{table}"))


def _stamped(usecase: UseCase, rows: pl.DataFrame, run: pl.Expr) -> pl.DataFrame:
    """With what every table carries: figures of a day happen when it begins and can be known when it is over."""
    begins = pl.col(DAY).map_elements(usecase.day_start, _INSTANT)
    ends = (pl.col(DAY) + timedelta(days=1)).map_elements(usecase.day_start, _INSTANT)
    return rows.with_columns(begins.alias("event_time"), ends.alias("available_at"), run)
