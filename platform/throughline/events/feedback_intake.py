"""The intake of reported outcomes: from their receipt to the table of their use case.

Owns: which reports are accepted, and since when they count as known. Does not own: what a report is (`feedback.py`),
the journal between receipt and table (`journal/intake.py`), HTTP (`collector.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal
from uuid import UUID

import orjson
import polars as pl
from pydantic import Field, ValidationError

from throughline.events.feedback import LAYER, SCHEMA, TABLE, BadReport, Report
from throughline.events.schema import Instant
from throughline.events.waiting import UnmatchedReports
from throughline.foundation.clock import WallClock, data_clock
from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.foundation.settings import Settings
from throughline.journal.intake import Intake, counts
from throughline.lakehouse.append import AppendOnce
from throughline.lakehouse.table import DAY
from throughline.records import Record
from throughline.usecase import UseCase


class NoSuchUseCase(ThroughlineError):
    """No declared use case has that name."""


class _Row(Record):
    """A line of the journal: a row of the table and its use case."""

    usecase: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    id: UUID
    prediction_id: UUID
    source: str
    label: Literal[0, 1]
    event_time: Instant
    available_at: Instant
    received_at: Instant


class FeedbackIntake(Intake):
    """The intake of the reports of one home."""

    what = "The feedback"

    def __init__(self, settings: Settings, usecases: Mapping[str, UseCase]) -> None:
        super().__init__(settings.serving_home / "spool" / "feedback")
        self._settings = settings
        self._usecases = usecases
        self._clocks = {name: data_clock(settings, each.clock_start(settings)) for name, each in usecases.items()}
        self._tables: dict[str, AppendOnce] = {}
        self._unmatched = UnmatchedReports(settings, usecases, self._clocks)
        self.received = self.written = 0

    async def receive(self, usecase: str, body: bytes) -> tuple[int, list[dict[str, Any]]]:
        """Returns when the reports of a body (one, or an array) are on the disk: how many were accepted, and of each
        other one its position and why. Raises `BadReport` when the body is none, `NoSuchUseCase`."""
        if usecase not in self._usecases:
            raise NoSuchUseCase(f"{ascii(usecase)[1:-1][:80]}: no declared use case; there are {list(self._usecases)}")
        now, wall = self._clocks[usecase].now(), WallClock().now()
        lines, refused = [], []
        for position, given in enumerate(_reports(body)):
            try:
                report = Report.model_validate(given)
                if report.time is not None and report.time > now:
                    raise BadReport(f"time: {report.time.isoformat()} is after the data clock's {now.isoformat()}")
            except ValidationError as error:
                refused.append({"position": position, "error": ": ".join(first_problem(error))[:300]})
            except BadReport as error:
                refused.append({"position": position, "error": str(error)})
            else:
                row = {
                    "usecase": usecase, "id": report.id_at(report.time or now), "prediction_id": report.prediction_id,
                    "source": report.source, "label": report.value, "event_time": report.time or now,
                    "available_at": now, "received_at": wall,
                }  # fmt: skip
                lines.append(orjson.dumps(row))
        if lines:
            await self.confirm(lines)
        self.received += len(lines)
        self.rejected += len(refused)
        return len(lines), refused

    def parse(self, line: bytes) -> tuple[str, _Row]:
        row = _Row.model_validate(orjson.loads(line))
        return row.usecase, row

    def to_rows(self, items: Sequence[_Row]) -> pl.DataFrame:
        rows = [
            {**item.model_dump(exclude={"usecase"}), "id": str(item.id), "prediction_id": str(item.prediction_id),
             DAY: item.available_at.date()}
            for item in items
        ]  # fmt: skip
        return pl.DataFrame(rows, schema=SCHEMA)

    def append(self, table: str, rows: pl.DataFrame) -> int:
        try:
            fresh = self._open(table).append(rows).height
        except Exception:
            self._tables.pop(table, None)  # opened again at the next attempt: it may have been replaced
            raise
        self.written += fresh
        return fresh

    def write(self) -> dict[str, Any]:
        """Move everything confirmed so far: `version` of each table, and by use case what `failed`."""
        self.flush()
        return {
            "version": {usecase: self._open(usecase).version for usecase in sorted(self._usecases)},
            "failed": {table: failure.what for table, failure in self.failures.items()},
        }

    def status(self) -> dict[str, Any]:
        """Counts of reports since this start; of those in the tables, how many are `waiting` for their prediction now,
        and how many `expired`: they waited in vain."""
        return {
            "received": self.received, "written": self.written, **counts(self), **asdict(self._unmatched.count())
        }  # fmt: skip

    def _open(self, usecase: str) -> AppendOnce:
        if usecase not in self._tables:
            self._tables[usecase] = AppendOnce(self._settings.table_path(usecase, LAYER, TABLE), by_day=True)
        return self._tables[usecase]


def _reports(body: bytes) -> list[Any]:
    try:
        read = orjson.loads(body)
    except ValueError as error:
        raise BadReport(f"body: not JSON ({str(error)[:120]}); send a report, or an array of reports") from None
    return read if isinstance(read, list) else [read]
