"""The engine on Spark Connect, for tables larger than one machine: it joins there and fetches the result.

Owns: how a request becomes Spark's plan. Does not own: the endpoint (`lakehouse/spark.py`), or the rule of the join
(`asof.py`); the same tests run on both engines.

The join: spine and feature rows of a view in one table in order of time, where each spine row takes the newest row
before it (a running `max_by`). That is one sort per view, which can spill, and no pairwise comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING

import polars as pl
import polars.selectors as cs

from throughline.featurestore.delta_source import DeltaSource, to_arrow
from throughline.featurestore.layout import EVENT_TIME
from throughline.featurestore.polars_engine import PolarsEngine, scan
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
from throughline.lakehouse.spark import address, session

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_PLACE, _AT, _IN_SPINE, _EVENT, _RANK, _VALUES = "__place", "__at", "__in_spine", "__event", "__rank", "__values"


@dataclass(frozen=True)
class SparkEngine:
    """See `retrieval.Engine`. `remote`: URL of a Spark Connect server that reaches the tables by the same paths."""

    remote: str

    def facts(self, spine: Spine, views: Sequence[ViewRead]) -> Facts:
        if isinstance(spine, FrameSpine):
            return PolarsEngine().facts(spine, views)
        with _spark(self.remote, _tables(spine, views)) as spark:
            return _facts(_spine_of(spark, spine, views), views)

    def historical(self, spine: Spine, views: Sequence[ViewRead]) -> Answer:
        tables = _tables(spine, views)
        if isinstance(spine, FrameSpine):
            return Answer(lambda: _frame_joined(self.remote, tables, spine.frame, views))
        return _planned(self.remote, tables, lambda spark: _in_order(spark, spine, views))

    def latest(self, pull: Pull, keys: list[str]) -> Answer:
        def newest(spark: SparkSession) -> DataFrame:
            from pyspark.sql import functions as F  # postpones pyspark (2 s)

            rows = _pulled(spark, pull).dropna(subset=keys) if keys else _pulled(spark, pull)
            whole = F.max_by(F.struct(*map(_column, pull.columns)), F.struct(*_order(pull))).alias(_VALUES)
            found = rows.groupBy(*map(_column, keys)).agg(whole)
            return found.where(F.col(_VALUES).isNotNull()).select(f"{_VALUES}.*")

        return _planned(self.remote, [pull.source], newest)

    def rows(self, pull: Pull) -> Answer:
        return _planned(self.remote, [pull.source], lambda spark: _pulled(spark, pull).orderBy(*_order(pull)))


def _planned(remote: str, tables: Sequence[DeltaSource], plan: Callable[[SparkSession], DataFrame]) -> Answer:
    """The result of a plan; a write stays on the cluster."""

    def batches() -> Iterator[pl.DataFrame]:
        with _spark(remote, tables) as spark:
            yield pl.DataFrame(plan(spark).toArrow())

    def write(path: str) -> None:
        with _spark(remote, tables) as spark:
            writer = plan(spark).write.format("delta").mode("overwrite")
            writer.option("overwriteSchema", "true").save(address(path))

    return Answer(batches, write)


def _frame_joined(
    remote: str, tables: Sequence[DeltaSource], frame: pl.DataFrame, views: Sequence[ViewRead]
) -> Iterator[pl.DataFrame]:
    """A spine in this process' memory: its keys and times are sent, the features are fetched."""
    keys = list(dict.fromkeys(key for view in views for key in view.keys))
    facts = PolarsEngine().facts(FrameSpine(frame), views)
    at = pl.col(facts.time).dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC"))
    # keys in types that Spark has; they are compared in the table's type
    plain = frame.select(keys).cast({cs.categorical() | cs.enum(): pl.String, cs.unsigned_integer(): pl.Int64})
    sent = plain.with_columns(frame.select(at).to_series().alias(_AT)).with_row_index(_PLACE)
    names = [name for view in views for name in view.features.values()]
    with _spark(remote, tables) as spark:
        spine = spark.createDataFrame(to_arrow(sent.cast({_PLACE: pl.Int64})))
        found = _joined(spine, views, _AT).select(_column(_PLACE), *map(_column, names)).toArrow()
    yield frame.hstack(pl.DataFrame(found).sort(_PLACE).drop(_PLACE))


def _tables(spine: Spine, views: Sequence[ViewRead]) -> list[DeltaSource]:
    return [*(view.source for view in views), *(spine.tables.values() if isinstance(spine, SqlSpine) else ())]


@contextmanager
def _spark(remote: str, tables: Sequence[DeltaSource]) -> Generator[SparkSession]:
    """A session for one result. Raises for a table that cannot be read, as the other engine does."""
    for table in tables:
        scan(table)
    with session(remote) as spark:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
        spark.conf.set("spark.sql.caseSensitive", "true")
        yield spark


def _column(name: str) -> Column:
    from pyspark.sql import functions as F  # postpones pyspark (2 s)

    return F.col(f"`{name.replace('`', '``')}`")


def _read(spark: SparkSession, source: DeltaSource) -> DataFrame:
    from pyspark.sql import functions as F  # postpones pyspark (2 s)

    rows = spark.read.format("delta").option("versionAsOf", source.version).load(address(source.path))
    if isinstance(source, PushedSource):
        known = source.created_column
        earlier = rows.withColumn(known, _column(known) - F.lit(timedelta(microseconds=1)))
        rows = earlier.unionByName(_read(spark, source.pushed), allowMissingColumns=True)
    return rows


def _order(pull: Pull) -> list[Column]:
    return [_column(name) for name in (pull.event_time, pull.created) if name]


def _pulled(spark: SparkSession, pull: Pull) -> DataFrame:
    time, rows = _column(pull.event_time), _read(spark, pull.source)
    if pull.first is not None:
        rows = rows.where(time >= pull.first)
    if pull.last is not None:
        rows = rows.where(time <= pull.last)
    return rows.select(*map(_column, pull.columns))


def _spine_of(spark: SparkSession, spine: Spine, views: Sequence[ViewRead]) -> DataFrame:
    if isinstance(spine, SqlSpine):
        for name, source in spine.tables.items():
            _read(spark, source).createOrReplaceTempView(name)
        return spark.sql(spine.sql)
    assert not isinstance(spine, FrameSpine)
    keyed = [view for view in views if view.keys] or views
    seen = [
        _read(spark, view.source)
        .where(_column(view.event_time).between(spine.first, spine.last))
        .select(
            *(_column(column).alias(key) for key, column in view.keys.items()),
            _column(view.event_time).alias(EVENT_TIME),
        )
        for view in keyed
    ]
    together = reduce(lambda left, right: left.unionByName(right, allowMissingColumns=True), seen).distinct()
    keys = list(dict.fromkeys(key for view in keyed for key in view.keys))
    return together.select(*map(_column, keys), _column(EVENT_TIME))


def _in_order(spark: SparkSession, spine: Spine, views: Sequence[ViewRead]) -> DataFrame:
    rows = _spine_of(spark, spine, views)
    keys = [name for name in rows.columns if name != EVENT_TIME]
    joined = _joined(rows, views)
    return joined if isinstance(spine, SqlSpine) else joined.orderBy(EVENT_TIME, *map(_column, keys))


def _facts(spine: DataFrame, views: Sequence[ViewRead]) -> Facts:
    from pyspark.sql import functions as F  # postpones pyspark (2 s)

    time = _time_of(spine, views)
    span = spine.agg(F.min(_column(time)).alias("first"), F.max(_column(time)).alias("last")).toArrow().to_pylist()[0]
    return Facts(spine.columns, time, span["first"], span["last"])


def _time_of(spine: DataFrame, views: Sequence[ViewRead]) -> str:
    from pyspark.sql import types as T  # postpones pyspark (2 s)

    kinds: dict[type, Kind] = {T.TimestampType: "instant", T.TimestampNTZType: "naive", T.DateType: "naive"}
    return check_spine({field.name: kinds.get(type(field.dataType), "other") for field in spine.schema}, views)


def _joined(spine: DataFrame, views: Sequence[ViewRead], time: str | None = None) -> DataFrame:
    time = time or _time_of(spine, views)
    return reduce(lambda joined, view: _with_view(joined, view, time), views, spine)


def _with_view(spine: DataFrame, view: ViewRead, time: str) -> DataFrame:
    from pyspark.sql import Window  # postpones pyspark (2 s)
    from pyspark.sql import functions as F  # postpones pyspark (2 s)

    table = _read(spine.sparkSession, view.source)
    keys = [f"__key_{number}" for number in range(len(view.keys))]
    key_columns = list(view.keys.values())
    event = _column(view.event_time)
    created = _column(view.created) if view.created else None
    known_from = [view.created] if view.known_only and view.created else []
    rows = table.dropna(subset=[*key_columns, view.event_time, *known_from]).select(
        *(_column(column).alias(key) for key, column in zip(keys, key_columns, strict=True)),
        (F.greatest(event, *map(_column, known_from)) if known_from else event).alias(_AT),
        F.lit(False).alias(_IN_SPINE),
        F.struct(*[event] if created is None else [event, created]).alias(_RANK),
        F.struct(event.alias(_EVENT), *(_column(c).alias(n) for c, n in view.features.items())).alias(_VALUES),
    )
    types = {field.name: field.dataType for field in table.schema}
    wanted = spine.select(
        *(
            _column(key).try_cast(types[column]).alias(name)
            for name, (key, column) in zip(keys, view.keys.items(), strict=True)
        ),
        _column(time).alias(_AT),
        F.lit(True).alias(_IN_SPINE),
        F.struct(*map(_column, spine.columns)).alias("__spine"),
    )
    # a constant where there are no keys: Spark warns of a window without partitions
    so_far = (
        Window.partitionBy(*(keys or [F.lit(0)]))
        .orderBy(_AT, _IN_SPINE)
        .rowsBetween(Window.unboundedPreceding, Window.currentRow)
    )
    newest = rows.unionByName(wanted, allowMissingColumns=True).withColumn(
        _VALUES, F.max_by(_VALUES, _RANK).over(so_far)
    )
    values = F.col(_VALUES)
    if view.ttl:
        age = F.unix_micros(F.col("__spine").getField(time)) - F.unix_micros(values.getField(_EVENT))
        values = F.when(age <= view.ttl // timedelta(microseconds=1), values)
    return newest.where(_IN_SPINE).select("__spine.*", *(values.getField(n).alias(n) for n in view.features.values()))
