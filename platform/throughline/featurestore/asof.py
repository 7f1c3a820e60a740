"""The point-in-time join; pure.

The rule, here only: a prediction at time t uses, of the rows of its entity with event time at or before t (and not
older than the ttl), the newest; of several with one event time, the one created last. Does not own: where rows come
from.

Speed: the join moves row numbers only; a spine is sorted once for all views, a feature value is copied once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from throughline.foundation.errors import ThroughlineError

_TIME, _PLACE, _CREATED = "time", "place", "created"
_UTC = pl.Datetime("us", "UTC")


@dataclass(frozen=True, kw_only=True)
class View:
    """The rows of one feature view, and what a spine takes from them.

    rows:    with `keys`, `row_time` (timezone-aware) and, when given, `created`; rows with a null key never match.
    keys:    of the same names in the spine, compared in the type they have in `rows`; empty: one entity for all.
    columns: name in `rows` -> name in the result. `ttl` None or zero means that values do not expire.
    """

    rows: pl.LazyFrame
    keys: list[str] = field(default_factory=list)
    row_time: str
    columns: dict[str, str]
    created: str | None = None
    ttl: timedelta | None = None


def join_batches(
    spine: Iterable[pl.DataFrame],
    views: Sequence[View],
    *,
    spine_time: str,
    span: tuple[datetime | None, datetime | None] = (None, None),
) -> Iterator[pl.DataFrame]:
    """Add to each spine row the columns of the feature rows it may use; null where there is none.

    spine: batches of rows with every key and `spine_time` (timezone-aware); their rows and order are kept. Memory is
    that of the views and a batch. span: the first and last instant of the spine, where known: rows that none of it can
    use are not read. Raises when two columns of the result would have one name.
    """
    held = [_Held(view, *span) for view in views]
    for batch in spine:
        yield _joined(batch, held, spine_time)


class _Held:
    """A view in memory: its values, and an index of row numbers in order of time and creation."""

    def __init__(self, view: View, first: datetime | None, last: datetime | None) -> None:
        schema = view.rows.collect_schema()
        order = [view.created, view.row_time] if view.created else [view.row_time]
        rows = (
            view.rows.select(*dict.fromkeys([*view.keys, *order, *view.columns]))
            .drop_nulls([*view.keys, view.row_time])
            .filter(*_within(pl.col(view.row_time), schema[view.row_time], first, last, view.ttl))
            .collect()
            .rechunk()
        )
        self.values = rows.select(pl.col(name).alias(alias) for name, alias in view.columns.items())
        self._keys = [_key(rows[key]) for key in view.keys]
        self._matched = [key.meta.output_name() for key in self._keys]
        created = [pl.col(view.created).alias(_CREATED)] if view.created else []
        index = rows.select(*created, _utc(view.row_time).alias(_TIME), *self._keys).with_row_index(_PLACE)
        # Stable sorts by one column each take half the time of one sort by all; many tables are in order already.
        # Keys are sorted last, so that the rows of an entity, which the join walks through, are adjacent.
        for column in index.columns[1:]:
            if not index[column].is_sorted():
                index = index.sort(column, nulls_last=False, maintain_order=True)
        self._index = index.select(_TIME, _PLACE, *self._matched)
        self._ttl = view.ttl or None

    def places(self, spine: pl.DataFrame, times: pl.Series, order: pl.Series | None) -> pl.Series:
        """For each row of the spine, in order of time, the number of the row it may use."""
        keys = spine.select(self._keys)
        if order is not None:
            keys = keys.select(pl.all().gather(order))
        joined = pl.LazyFrame([times, *keys]).join_asof(
            self._index.lazy(),
            on=_TIME,
            by=self._matched or None,
            strategy="backward",
            tolerance=self._ttl,
            check_sortedness=False,
        )
        return joined.select(_PLACE).collect().to_series().rechunk()


def _joined(spine: pl.DataFrame, views: Sequence[_Held], spine_time: str) -> pl.DataFrame:
    names = [*spine.columns, *(name for view in views for name in view.values.columns)]
    if taken := sorted({name for name in names if names.count(name) > 1}):
        raise ThroughlineError(f"The spine already has {', '.join(taken)}: drop or rename before the join.")
    spine = spine.rechunk()
    times, order, back = spine.select(_utc(spine_time).alias(_TIME)).to_series(), None, None
    if not times.is_sorted():
        order, back = times.arg_sort(), np.empty(spine.height, np.uint32)
        back[order.to_numpy()] = np.arange(spine.height, dtype=np.uint32)
        times = times.gather(order)
    result = spine
    for view in views:
        places = view.places(spine, times, order)
        result = result.hstack(view.values.select(pl.all().gather(places if back is None else places.gather(back))))
    return result


def _key(held: pl.Series) -> pl.Expr:
    """A key as it is compared: in the type of the rows; a text as its number among theirs, null for an unknown one."""
    key = pl.col(held.name).cast(held.dtype)
    if held.dtype == pl.String:
        key = key.cast(pl.Enum(held.unique()), strict=False).to_physical()
    return key.alias(f"key_{held.name}")


def _utc(time: str) -> pl.Expr:
    return pl.col(time).dt.convert_time_zone("UTC").cast(_UTC)


def _within(
    time: pl.Expr, kind: pl.DataType, first: datetime | None, last: datetime | None, ttl: timedelta | None
) -> Iterator[pl.Expr]:
    """Keeps the rows that a spine between `first` and `last` can use, and at most a millisecond more.

    The bounds are literals of the column's own type, so that files without such rows are skipped.
    """
    assert isinstance(kind, pl.Datetime)

    def bound(instant: pl.Expr) -> pl.Expr:
        instant = instant.cast(_UTC).dt.cast_time_unit(kind.time_unit)
        instant = instant.dt.convert_time_zone(kind.time_zone) if kind.time_zone else instant.dt.replace_time_zone(None)
        return pl.lit(pl.select(instant).item(), kind)

    if last is not None:
        yield time < bound(pl.lit(last) + timedelta(milliseconds=1))
    if first is not None and ttl:
        yield time >= bound(pl.lit(first) - ttl)
