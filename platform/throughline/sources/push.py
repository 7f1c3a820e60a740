"""Intake of rows that are pushed over HTTP: which are accepted, under which id, and from when they count as known.

Owns: the check of a body against the declared columns, the knowledge time, the journal on the way to the table.
Does not own: HTTP (`events/collector.py`), the table (`received.py`), rules about values (`validation/`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from throughline.foundation.clock import Clock, WallClock, data_clock
from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.foundation.settings import Settings
from throughline.journal.intake import Intake, counts
from throughline.lakehouse.append import AppendOnce
from throughline.lakehouse.table import DAY, current_version
from throughline.sources.received import LAYER, SCHEMA
from throughline.usecase import Column, SourceTable, UseCase
from throughline.usecase.feeds import PushFeed


class BadRow(ThroughlineError):
    """A body that is refused; sending it again does not help."""


class NoSuchTable(ThroughlineError):
    """No declared table takes rows under that name."""


@dataclass(frozen=True)
class _PushTable:
    """A declared table that takes rows, and what its rows are checked against."""

    usecase: UseCase
    feed: PushFeed
    fields: tuple[str, ...]
    row: TypeAdapter[Any]
    clock: Clock


class PushIntake(Intake):
    """The intake of all declared tables of one home that take rows."""

    what = "The table of pushed rows"

    def __init__(self, settings: Settings, usecases: Mapping[str, UseCase]) -> None:
        super().__init__(settings.serving_home / "spool" / "sources")
        self._settings = settings
        self._declared = {
            f"{usecase.name}/{name}": _push_table(settings, usecase, table, table.feed)
            for usecase in usecases.values()
            for name, table in usecase.sources.tables.items()
            if isinstance(table.feed, PushFeed)
        }
        self._received: dict[str, AppendOnce] = {}
        self.received = self.written = 0

    def check(self, usecase: str, table: str, body: bytes) -> list[bytes]:
        """The rows of a body as lines to be confirmed. Raises `BadRow` naming the row and field, `NoSuchTable`."""
        target = self._target(usecase, table)
        now, received = target.clock.now(), WallClock().now()
        return [
            _line(target, f"{usecase}/{table}", row, where, now, received) for where, row in _rows(body, target.row)
        ]

    async def confirm(self, lines: list[bytes]) -> None:
        await super().confirm(lines)
        self.received += len(lines)

    def parse(self, line: bytes) -> tuple[str, dict[str, Any]]:
        row = json.loads(line)
        usecase, table = row["table"].split("/")
        times = {name: datetime.fromisoformat(row[name]) for name in ("event_time", "available_at", "received_at")}
        return f"{usecase}/{table}", {**row, **times, DAY: datetime.fromisoformat(row[DAY]).date()}

    def to_rows(self, items: Sequence[dict[str, Any]]) -> pl.DataFrame:
        return pl.DataFrame(items, schema=SCHEMA)

    def append(self, table: str, rows: pl.DataFrame) -> int:
        if table not in self._received:
            usecase, name = table.split("/")
            self._received[table] = AppendOnce(self._settings.table_path(usecase, LAYER, name), by_day=True)
        fresh = self._received[table].append(rows).height
        self.written += fresh
        return fresh

    def write(self, usecase: str, table: str) -> int | None:
        """Move everything confirmed so far. Returns the version of the table, None while nothing was pushed. Raises
        when that table cannot be written."""
        self._target(usecase, table)
        self.flush()
        if failure := self.failures.get(f"{usecase}/{table}"):
            raise ThroughlineError(failure.what)
        return current_version(self._settings.table_path(usecase, LAYER, table))

    def status(self) -> dict[str, Any]:
        """Counts of rows, duplicates and refused requests since this start."""
        return {"received": self.received, "written": self.written, **counts(self)}

    def _target(self, usecase: str, table: str) -> _PushTable:
        target = self._declared.get(f"{usecase}/{table}")
        if target is None:
            there = ", ".join(sorted(self._declared)) or "none"
            raise NoSuchTable(
                f"{ascii(f'{usecase}/{table}')[1:-1][:80]}: no table of a declared use case takes rows there; "
                f"there are: {there}"
            )
        return target


def _push_table(settings: Settings, usecase: UseCase, table: SourceTable, feed: PushFeed) -> _PushTable:
    assert table.expects is not None  # a declaration with `push` has it
    instant = Column(type="timestamp")
    columns = {feed.event_time: instant, feed.available_at: Column(type="timestamp", nulls=1), **table.expects.columns}
    kinds: dict[str, Any] = {
        "string": str, "integer": Annotated[int, Field(ge=-(2**63), lt=2**63)], "number": float, "boolean": bool,
        "timestamp": Annotated[datetime, AfterValidator(_in_utc(feed.timezone))],
    }  # fmt: skip
    fields = {
        name: NotRequired[kinds[column.type] | None] if column.nulls else kinds[column.type]
        for name, column in columns.items()
    }
    Row = TypedDict("Row", fields)  # ty: ignore[invalid-argument-type]  # the fields come from the declaration
    row = with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))(Row)
    return _PushTable(
        usecase, feed, tuple(columns), TypeAdapter(row), data_clock(settings, usecase.clock_start(settings))
    )


def _in_utc(zone: str | None) -> Callable[[datetime], datetime]:
    """As in `conform.py`: of a local hour that occurs twice the later, and one that does not exist is refused."""

    def convert(stamp: datetime) -> datetime:
        if not 1900 <= stamp.year < 2200:
            raise ValueError("lies outside the years 1900 to 2199")
        if stamp.tzinfo is not None:
            return stamp.astimezone(UTC)
        if zone is None:
            raise ValueError("has no time zone: send an offset, for example 2024-03-01T09:00:00+01:00")
        instant = stamp.replace(tzinfo=ZoneInfo(zone), fold=1).astimezone(UTC)
        if instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None) != stamp:
            raise ValueError(f"does not exist in {zone}, where the clocks go forward then")
        return instant

    return convert


def _rows(body: bytes, row: TypeAdapter[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a body, an array or a line each, with their places in it for messages."""
    text = body.strip()
    if text[:1] == b"[":
        try:
            array = json.loads(text)
        except (ValueError, RecursionError):
            raise BadRow("body: not JSON; send an array of rows, or a row a line") from None
        found = [(f"rows[{number}]", json.dumps(one).encode()) for number, one in enumerate(array)]
    else:
        lines = enumerate(body.split(b"\n"), start=1)
        found = [(f"line {number}", line) for number, line in lines if line.strip()]
    if not found:
        raise BadRow("body: no rows")
    return [(where, _valid(row, one, where)) for where, one in found]


def _valid(row: TypeAdapter[dict[str, Any]], one: bytes, where: str) -> dict[str, Any]:
    try:
        return row.validate_json(one)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise BadRow(f"{where}{f'.{field}' if field else ''}: {problem}") from None


def _line(target: _PushTable, table: str, row: dict[str, Any], where: str, now: datetime, received: datetime) -> bytes:
    feed = target.feed
    known = row.get(feed.available_at) or now
    if known > now:
        raise BadRow(f"{where}.{feed.available_at}: {known.isoformat()} is after the data clock's {now.isoformat()}")
    whole = {**dict.fromkeys(target.fields), **row, feed.available_at: known}
    return json.dumps(
        {
            "table": table,
            "id": str(row[feed.push]),
            "row": json.dumps(whole, default=datetime.isoformat, separators=(",", ":")),
            "event_time": row[feed.event_time].isoformat(),
            "available_at": known.isoformat(),
            "received_at": received.isoformat(),
            DAY: target.usecase.local_day(known).isoformat(),
        }
    ).encode()
