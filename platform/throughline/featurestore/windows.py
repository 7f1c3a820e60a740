"""Which window of a feature view to write online; pure.

Owns: the rule that after each materialisation the online store holds, per entity, the newest row known up to `until`,
as if the view had been written whole. A window is enough unless rows outside it changed. Does not own: reading or
writing (`materialise.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from throughline.foundation.references import TableReference
from throughline.records import Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # before every row; where there is no row, its time


class ViewState(Record):
    """What a view's online rows were made from; kept in the online store, and lost with it.

    definition: digest of the view's definition; pushed: version of the pushed rows, None when there were none.
    newest, known (UTC): event and knowledge time of the newest row.
    """

    until: datetime
    definition: str
    source: TableReference
    pushed: int | None
    newest: datetime | None = None
    known: datetime | None = None

    @property
    def age(self) -> tuple[datetime, datetime]:
        """Event and knowledge time of the newest row."""
        return self.newest or EPOCH, self.known or EPOCH

    def with_newest(self, age: tuple[datetime, datetime]) -> ViewState:
        """This state with the newest row at `age`."""
        newest, known = (None if at == EPOCH else at for at in age)
        return self.model_copy(update={"newest": newest, "known": known})


@dataclass(frozen=True)
class Changes:
    """How rows up to an instant differ between two versions of a source.

    earliest: event time of the first that differs; lost: a row was removed and not replaced.
    """

    earliest: datetime | None = None
    lost: bool = False

    def __or__(self, other: Changes) -> Changes:
        times = [at for at in (self.earliest, other.earliest) if at is not None]
        return Changes(min(times, default=None), self.lost or other.lost)


@dataclass(frozen=True)
class Window:
    """Write event times from `start` (UTC; None: the view whole, replacing what is there), for a reason."""

    start: datetime | None
    reason: str

    def __str__(self) -> str:
        return self.reason if self.start is None else f"from {self.start.isoformat()}: {self.reason}"


def plan_window(held: ViewState | None, wanted: ViewState, changes: Changes | None, overlap: timedelta) -> Window:
    """The window to write to take the view from `held` to `wanted`; `changes` up to `held.until`, None when unknown."""
    if held is None:
        return Window(None, "whole: no state is recorded")
    if held.definition != wanted.definition:
        return Window(None, "whole: the definition changed")
    if wanted.until < held.until:
        return Window(None, f"whole: it was materialised until {held.until.isoformat()}, which is later")
    if changes is None:
        return Window(None, "whole: the changes in its history are unknown")
    if changes.lost:
        return Window(None, "whole: a row was removed")
    start = held.until - overlap
    if changes.earliest is not None and changes.earliest < start:
        return Window(None, f"whole: history changed at {changes.earliest.isoformat()}")
    return Window(start, "new and late rows")


def compare(before: pl.DataFrame, after: pl.DataFrame, keys: list[str], event: str, created: str | None) -> Changes:
    """How two versions of the same rows differ; all their columns count as content."""
    rows = pl.concat([before.with_columns(net=pl.lit(-1)), after.with_columns(net=pl.lit(1))], how="diagonal_relaxed")
    net = rows.group_by(pl.exclude("net")).agg(pl.col("net").sum()).filter(pl.col("net") != 0)
    key = [*keys, event, *([created] if created else [])]
    gained = net.filter(pl.col("net") > 0).select(key)
    gone = net.filter(pl.col("net") < 0).join(gained, on=key, how="anti", nulls_equal=True)
    earliest: Any = net[event].min()
    return Changes(earliest, gone.height > 0)
