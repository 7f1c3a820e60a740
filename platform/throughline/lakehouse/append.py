"""Appending rows to a Delta table once by their `id`: the same rows again, after a retry or a crash, change nothing.

Owns: which rows are new, retries after another writer's commit. Does not own: rows that replace others (`table.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import date
from hashlib import blake2b

import polars as pl
from deltalake import write_deltalake

from throughline.lakehouse.delta import ONE_ATTEMPT, Location, create, find, refusals, retry_conflicts
from throughline.lakehouse.table import DAY, rows_of

DAYS_IN_MEMORY = 8
_ID = "id"


class AppendOnce:
    """A table that only grows; it stays open between appends. `id` is a text, unique in the table. Not thread-safe.

    Columns that the table has not get added to it; they are null in the rows that are there.

    by_day: the table is partitioned by `day`. same_day: an id always comes with the same day and is compared with those
    of that day only. The ids of the last days are kept in memory, 16 bytes each: reading them for each batch of 500
    rows into a day of 50,000 takes three times as long.
    """

    def __init__(self, location: Location, *, by_day: bool = False, same_day: bool = False) -> None:
        self._location = location
        self._partition_by = [DAY] if by_day else None
        self._days: OrderedDict[date, set[bytes]] | None = OrderedDict() if same_day else None
        self._table = find(location)

    @property
    def version(self) -> int | None:
        """Of the table as last read or written here; None while there is none."""
        return None if self._table is None else self._table.version()

    def rows(self) -> pl.LazyFrame | None:
        """The rows at `version`."""
        return None if self._table is None else rows_of(self._table)

    def append(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Append in one commit the rows whose id is new, the first of each, and return these."""
        rows = rows.unique(_ID, keep="first", maintain_order=True)
        return retry_conflicts(lambda: self._append(rows), lambda conflict: True)

    def _append(self, rows: pl.DataFrame) -> pl.DataFrame:
        self._refresh()
        fresh = rows.filter(~self._held(rows))
        if fresh.is_empty():
            return fresh
        if self._table is None:
            create(self._location, fresh, self._partition_by)
            self._table = find(self._location)
        else:
            with refusals(self._location, self._table):
                write_deltalake(
                    self._table,
                    fresh.to_arrow(),
                    mode="append",
                    schema_mode="merge" if self._lacks(fresh) else None,
                    commit_properties=ONE_ATTEMPT,
                )
        self._remember(fresh)
        return fresh

    def _lacks(self, rows: pl.DataFrame) -> bool:
        assert self._table is not None
        return not set(rows.columns) <= {field.name for field in self._table.schema().fields}

    def _refresh(self) -> None:
        """Read the newest version; after another writer's commit drop the ids in memory."""
        seen = self.version
        if self._table is None:
            self._table = find(self._location)
        else:
            self._table.update_incremental()
        if self._days and self.version != seen:
            self._days.clear()

    def _held(self, rows: pl.DataFrame) -> pl.Series:
        """For each row, whether the table has its id."""
        ids, table = rows[_ID], self.rows()
        if table is None:
            return pl.repeat(False, rows.height, eager=True)
        if self._days is not None:
            days = {day: self._ids_of(table, day) for day in rows[DAY].unique()}
            held = [_digest(id_) in days[day] for id_, day in zip(ids, rows[DAY], strict=True)]
            return pl.Series(held, dtype=pl.Boolean)
        near = pl.col(_ID).is_between(pl.lit(ids.min()), pl.lit(ids.max()))  # skips whole files
        return ids.is_in(table.filter(near).select(_ID).collect()[_ID].implode())

    def _ids_of(self, table: pl.LazyFrame, day: date) -> set[bytes]:
        assert self._days is not None
        if day not in self._days:
            held = table.filter(pl.col(DAY) == day).select(_ID).collect()[_ID]
            self._days[day] = {_digest(id_) for id_ in held}
        self._days.move_to_end(day)
        return self._days[day]

    def _remember(self, fresh: pl.DataFrame) -> None:
        if self._days is None:
            return
        for id_, day in fresh.select(_ID, DAY).iter_rows():
            self._days.setdefault(day, set()).add(_digest(id_))
        while len(self._days) > DAYS_IN_MEMORY:
            self._days.popitem(last=False)


def _digest(id_: str) -> bytes:
    return blake2b(id_.encode(), digest_size=16).digest()
