"""Ingestion: reads a declared source by local days, validates the rows, and writes the good ones to the raw table.

Owns: what a partition is: the rows that became known on a local day; in the first day also those delivered before it
about that day or later, such as its schedule. Does not own: the verdicts on rows and days (`validation/`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl

from throughline.foundation.clock import data_clock
from throughline.foundation.days import spans, through
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, RUN_ID, current_version, replace_all, replace_days
from throughline.records import DatasetRecord
from throughline.records.store import find_record
from throughline.sources.declared import source_of
from throughline.usecase import CONTRACT, UseCase
from throughline.validation import findings
from throughline.validation.drift import DriftVerdict, judge_drift
from throughline.validation.judge import Judgement, judge
from throughline.validation.statistics import day_statistics


@dataclass(frozen=True)
class Ingested:
    """What one ingestion wrote: the table's version (None: never written), rows, and a digest of each good day."""

    table: str
    version: int | None
    rows: int
    digests: dict[date, str]
    judgement: Judgement
    quarantine: TableReference | None
    drift: DriftVerdict | None

    @property
    def refused(self) -> list[date]:
        return [day for day, verdict in self.judgement.days.items() if not verdict.accepted]

    @property
    def refusal(self) -> str:
        """Why days were refused, where their rows are and what to do, in one line."""
        days = self.judgement.days
        rows = days[self.refused[0]].rows
        kept = f"its {rows} rows are in {self.quarantine}, " if rows else ""
        reasons = {day: days[day].reason for day in self.refused}
        return findings.refusal(self.table, reasons, f"; {kept}the table is unchanged")


def read_days(settings: Settings, usecase: UseCase, table: str, first: date, last: date, initial: date) -> pl.DataFrame:
    """Rows of the partitions [first, last], with their local `day`; `initial`: the table's first partition. Raises when
    a row lacks its event time or knowledge time, or belongs to another day."""
    source = source_of(settings, usecase, table)
    start = None if first == initial else usecase.day_start(first)
    rows = source.read(start, usecase.day_start(last + timedelta(days=1)))
    for name in CONTRACT:
        kind = rows.schema.get(name)
        if not isinstance(kind, pl.Datetime) or kind.time_zone != "UTC" or rows[name].null_count():
            missing = f"{rows[name].null_count()} nulls" if kind is not None else "missing"
            raise ThroughlineError(
                f"{usecase.name}/raw/{table}: the source's {name} is {kind or 'no column'} ({missing}) for {first} to "
                f"{last}: every row needs an instant in UTC. Nothing was written; correct {source.name}."
            )
    beginning = usecase.day_start(initial)
    rows = rows.filter((pl.col("available_at") >= beginning) | (pl.col("event_time") >= beginning))
    known_day = pl.col("available_at").dt.convert_time_zone(usecase.timezone).dt.date()
    rows = rows.with_columns(known_day.clip(lower_bound=initial).alias(DAY))
    if beyond := rows.filter(~pl.col(DAY).is_between(first, last)).height:
        raise ThroughlineError(
            f"{usecase.name}/raw/{table}: {beyond} rows that {source.name} delivered lie outside {first} to "
            f"{last}, which were requested: nothing was written; correct it."
        )
    return rows


def ingest_days(
    settings: Settings, usecase: UseCase, table: str, first: date, last: date, run_id: str, known_until: datetime
) -> Ingested:
    """Write the partitions [first, last] of a daily table; written twice, the content is the same.

    Consecutive good days are one commit. A bad day stays as it was in the table, its rows go to quarantine.
    known_until (UTC): up to when deliveries can be complete.
    """
    initial = usecase.first_day(settings)
    days = through(first, last)
    rows = read_days(settings, usecase, table, first, last, initial)
    declared = usecase.sources.tables[table]
    judgement = judge(rows, declared, days, first=initial, until=usecase.local_day(known_until))
    path = settings.table_path(usecase.name, "raw", table)

    def write_good(good: pl.DataFrame, accepted: Sequence[date]) -> None:
        for begin, end in spans(accepted):
            part = good.filter(pl.col(DAY).is_between(begin, end))
            # with `expects`, good rows have the declared columns: a difference to the table was declared
            replace_days(path, part, begin, end, new_columns=declared.expects is not None)

    return _write(settings, usecase, table, judgement, run_id, write_good)


def ingest_static(settings: Settings, usecase: UseCase, table: str, run_id: str) -> Ingested:
    """Write a reference table as a whole, or not at all when it is bad. It counts as one day, the first."""
    first = usecase.first_day(settings)
    now = data_clock(settings, usecase.clock_start(settings)).now()
    rows = source_of(settings, usecase, table).read(None, now)
    judgement = judge(rows.with_columns(pl.lit(first).alias(DAY)), usecase.sources.tables[table], [first])

    def write_good(good: pl.DataFrame, accepted: Sequence[date]) -> None:
        if accepted:
            replace_all(settings.table_path(usecase.name, "raw", table), good.drop(DAY))

    return _write(settings, usecase, table, judgement, run_id, write_good)


def _write(
    settings: Settings,
    usecase: UseCase,
    table: str,
    judgement: Judgement,
    run_id: str,
    write_good: Callable[[pl.DataFrame, Sequence[date]], None],
) -> Ingested:
    """Write bad rows, good rows, statistics and verdicts, the verdicts last: until then the earlier ones hold."""
    run = pl.lit(run_id).alias(RUN_ID)
    accepted = [day for day, verdict in judgement.days.items() if verdict.accepted]
    quarantine = findings.write_quarantine(settings, usecase, table, judgement.quarantined, list(judgement.days), run)
    write_good(judgement.good.with_columns(run), accepted)
    findings.write_statistics(settings, usecase, table, day_statistics(judgement.good, accepted), accepted, run)
    findings.write_verdicts(settings, usecase, table, list(judgement.days.values()), run)
    parts = judgement.good.partition_by(DAY, as_dict=True)
    return Ingested(
        table=f"{usecase.name}/raw/{table}",
        version=current_version(settings.table_path(usecase.name, "raw", table)),
        rows=judgement.good.height,
        digests={day: content_digest(parts.get((day,), judgement.good.clear())) for day in accepted},
        judgement=judgement,
        quarantine=quarantine,
        drift=_drift(settings, usecase, table, max(judgement.days)),
    )


def _drift(settings: Settings, usecase: UseCase, table: str, last: date) -> DriftVerdict | None:
    """The days up to `last` against those that the newest training dataset trains on; None without declared drift."""
    expects = usecase.sources.tables[table].expects
    if expects is None or expects.drift is None:
        return None
    dataset = find_record(settings, (usecase.name, "training", "dataset"), DatasetRecord)
    if dataset is None:
        return DriftVerdict("cannot_say", "there is no training dataset to compare with yet", {})
    statistics = findings.read_statistics(settings, usecase, table)
    window = pl.col(DAY).is_between(last - expects.drift.window, last, closed="right")
    reference = pl.col(DAY) < usecase.local_day(dataset.holdout_from)
    return judge_drift(statistics.filter(reference).collect(), statistics.filter(window).collect(), expects.drift)


def content_digest(rows: pl.DataFrame) -> str:
    """Digest of the rows in their order, which is part of a source's contract."""
    return hashlib.sha256(rows.write_csv().encode()).hexdigest()[:16]
