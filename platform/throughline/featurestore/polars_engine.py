"""The engine in this process: Polars over delta-rs; a spine is joined in batches.

Owns: how a request becomes frames. Does not own: the join (`asof.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from throughline.featurestore.asof import View, join_batches
from throughline.featurestore.delta_source import DeltaSource
from throughline.featurestore.layout import EVENT_TIME
from throughline.featurestore.pushed import PushedSource
from throughline.featurestore.retrieval import (
    Answer,
    Facts,
    FrameSpine,
    Kind,
    Pull,
    Spine,
    SqlSpine,
    ViewRead,
    check_spine,
)

BATCH_ROWS = 4_000_000
_UTC = pl.Datetime("us", "UTC")
_EVENT, _CREATED, _KNOWN, _RANK = "__event", "__created", "__known", "__rank"


class PolarsEngine:
    """See `retrieval.Engine`."""

    def facts(self, spine: Spine, views: Sequence[ViewRead]) -> Facts:
        return _facts(_rows_of(spine, views), views)

    def historical(self, spine: Spine, views: Sequence[ViewRead]) -> Answer:
        return Answer(lambda: _joined(spine, views))

    def latest(self, pull: Pull, keys: list[str]) -> Answer:
        rows = _pulled(pull)
        newest = rows.drop_nulls(keys).unique(keys, keep="last", maintain_order=True) if keys else rows.tail(1)
        return _collected(newest)

    def rows(self, pull: Pull) -> Answer:
        return _collected(_pulled(pull))


def _collected(rows: pl.LazyFrame) -> Answer:
    return Answer(lambda: iter([rows.collect()]))


def scan(source: DeltaSource) -> pl.LazyFrame:
    """The source's rows and its pushed rows. Raises as `DeltaSource.scan` does."""
    rows = source.scan()
    if isinstance(source, PushedSource):
        earlier = pl.col(source.created_column) - pl.duration(microseconds=1)
        rows = pl.concat([rows.with_columns(earlier), scan(source.pushed)], how="diagonal_relaxed")
    return rows


def frame_kinds(schema: pl.Schema) -> dict[str, Kind]:
    """By column: is it an instant, a time without zone, or something else?"""

    def kind(column: pl.DataType) -> Kind:
        if column == pl.Date or column == pl.Datetime:
            return "instant" if getattr(column, "time_zone", None) else "naive"
        return "other"

    return {name: kind(column) for name, column in schema.items()}


def _joined(spine: Spine, views: Sequence[ViewRead]) -> Iterator[pl.DataFrame]:
    """A spine joined batch by batch: memory is that of the views and a batch."""
    rows = _rows_of(spine, views)
    facts = _facts(rows, views)
    batches = join_batches(
        _in_batches(spine, rows),
        [_as_view(view, f"__{number}") for number, view in enumerate(views)],
        spine_time=facts.time,
        span=(facts.first, facts.last),
    )
    for batch in batches:
        yield _without_expired(batch, views, facts.time)


def _rows_of(spine: Spine, views: Sequence[ViewRead]) -> pl.LazyFrame:
    if isinstance(spine, FrameSpine):
        return spine.frame.lazy()
    if isinstance(spine, SqlSpine):
        tables = {name: scan(source) for name, source in spine.tables.items()}
        return pl.SQLContext(tables, eager=False).execute(spine.sql)
    # views without entity name no entities: they count only where there are no others
    keyed = [view for view in views if view.keys] or views
    seen = [
        _as_view(view, "").rows.filter(pl.col(_EVENT).is_between(spine.first, spine.last)).select(*view.keys, _EVENT)
        for view in keyed
    ]
    together = pl.concat(seen, how="diagonal_relaxed").drop_nulls(_EVENT).unique()
    keys = list(dict.fromkeys(key for view in keyed for key in view.keys))
    return together.select(*keys, pl.col(_EVENT).alias(EVENT_TIME)).sort(EVENT_TIME, *keys)


def _facts(rows: pl.LazyFrame, views: Sequence[ViewRead]) -> Facts:
    schema = rows.collect_schema()
    time = check_spine(frame_kinds(schema), views)
    first, last = rows.select(first=pl.col(time).min(), last=pl.col(time).max()).collect().row(0)
    return Facts(schema.names(), time, first, last)


def _in_batches(spine: Spine, rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    slices = (
        spine.frame.iter_slices(BATCH_ROWS)
        if isinstance(spine, FrameSpine)
        else rows.collect_batches(chunk_size=BATCH_ROWS, lazy=True)
    )
    empty = True
    for batch in slices:
        empty = False
        yield batch
    if empty:
        yield rows.head(0).collect()


def _as_view(view: ViewRead, prefix: str) -> View:
    """The view for the join, its columns renamed: a key and a feature's column may have one name."""
    times = {_EVENT: view.event_time, **({_CREATED: view.created} if view.created else {})}
    features = {f"{prefix}_{number}": column for number, column in enumerate(view.features)}
    named = {**view.keys, **times, **features}
    rows = scan(view.source).select(pl.col(column).alias(name) for name, column in named.items())
    columns = dict(zip(features, view.features.values(), strict=True))
    if view.known_only and view.created:
        rows, columns = _as_known(rows, list(view.keys)), {**columns, _EVENT: prefix + _EVENT}
        return View(rows=rows, keys=list(view.keys), row_time=_KNOWN, created=_RANK, columns=columns)
    return View(
        rows=rows,
        keys=list(view.keys),
        row_time=_EVENT,
        created=_CREATED if view.created else None,
        columns=columns,
        ttl=view.ttl,
    )


def _as_known(rows: pl.LazyFrame, keys: list[str]) -> pl.LazyFrame:
    """The rows that were the newest known when they became known (the later of event and creation)."""
    known = pl.max_horizontal(pl.col(_EVENT, _CREATED).dt.convert_time_zone("UTC").cast(_UTC))
    complete = rows.drop_nulls([*keys, _EVENT, _CREATED]).with_columns(known.alias(_KNOWN))
    ordered = complete.sort(_KNOWN, _EVENT, _CREATED)
    newest = pl.col(_EVENT).cum_max()
    return ordered.filter(pl.col(_EVENT) == (newest.over(keys) if keys else newest)).with_row_index(_RANK)


def _without_expired(batch: pl.DataFrame, views: Sequence[ViewRead], time: str) -> pl.DataFrame:
    """Applies the ttl of rows joined by knowledge time; it counts from the event time."""
    for number, view in enumerate(views):
        event = f"__{number}{_EVENT}"
        if event not in batch.columns:
            continue
        if view.ttl:
            in_time = pl.col(time) - pl.col(event) <= view.ttl
            batch = batch.with_columns(
                pl.when(in_time).then(pl.col(name)).alias(name) for name in view.features.values()
            )
        batch = batch.drop(event)
    return batch


def _pulled(pull: Pull) -> pl.LazyFrame:
    time, rows = pl.col(pull.event_time), scan(pull.source)
    if pull.first is not None:
        rows = rows.filter(time >= pull.first)
    if pull.last is not None:
        rows = rows.filter(time <= pull.last)
    order = [column for column in (pull.event_time, pull.created) if column]
    return rows.select(pull.columns).sort(order, maintain_order=True)
