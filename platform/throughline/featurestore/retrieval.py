"""The types of a retrieval, in tables and columns, that the offline store and its engines share.

Owns: spines (the rows to join features to) and which column is their time. Does not own: Feast's objects
(`delta_store.py`), or how a result is computed (`polars_engine.py`, `spark_engine.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

import polars as pl

from throughline.featurestore.delta_source import DeltaSource, write_frames
from throughline.featurestore.layout import EVENT_TIME
from throughline.foundation.errors import ThroughlineError

Kind = Literal["instant", "naive", "other"]


@dataclass(frozen=True, kw_only=True)
class ViewRead:
    """What a retrieval takes from the table of one feature view; columns as the table names them.

    keys:       join key of the spine -> column; empty: one entity for all.
    features:   column -> name in the result.
    known_only: a row is used from its creation on; one without a creation is never used.
    """

    source: DeltaSource
    keys: dict[str, str]
    features: dict[str, str]
    event_time: str
    created: str | None = None
    ttl: timedelta | None = None
    known_only: bool = False


@dataclass(frozen=True)
class FrameSpine:
    """Rows in memory; the result keeps their order."""

    frame: pl.DataFrame


@dataclass(frozen=True)
class SqlSpine:
    """The rows of one SELECT over named tables; the result has no particular order."""

    sql: str
    tables: dict[str, DeltaSource]


@dataclass(frozen=True)
class WindowSpine:
    """A row per entity and event time that any of the views has in [first, last], in order of time."""

    first: datetime
    last: datetime


Spine = FrameSpine | SqlSpine | WindowSpine


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Rows of one table with event time in [first, last] (UTC; None: open), columns as the table names them."""

    source: DeltaSource
    columns: list[str]
    event_time: str
    created: str | None
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True)
class Facts:
    """Of a spine: its columns, which of them is its time, and the first and last instant (None without rows)."""

    columns: list[str]
    time: str
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True)
class Answer:
    """The rows of a query, which runs each time they are read.

    batches: the rows, in one or more frames of one schema. on_cluster: writes them to a path where they are computed.
    """

    batches: Callable[[], Iterator[pl.DataFrame]]
    on_cluster: Callable[[str], None] | None = None

    def write(self, path: str) -> None:
        """Write the rows as a Delta table, as its next version where there is one."""
        if self.on_cluster is not None:
            self.on_cluster(path)
        else:
            write_frames(path, self.batches())


class Engine(Protocol):
    def facts(self, spine: Spine, views: Sequence[ViewRead]) -> Facts: ...

    def historical(self, spine: Spine, views: Sequence[ViewRead]) -> Answer:
        """The spine with the values of the row it may use of each view (see `asof.py`); null where there is none."""

    def latest(self, pull: Pull, keys: list[str]) -> Answer:
        """Per entity the newest of the rows; of several with its event time, the one created last."""

    def rows(self, pull: Pull) -> Answer:
        """All rows, the newest last, as Feast's online stores keep the last one they get."""


def check_spine(columns: Mapping[str, Kind], views: Sequence[ViewRead]) -> str:
    """The time column of a spine: `event_timestamp`, or its only column of times.

    Raises when there is none or it has no time zone, a join key is missing, or two columns of the result would have one
    name.
    """
    times = [EVENT_TIME] if EVENT_TIME in columns else [name for name, kind in columns.items() if kind != "other"]
    if len(times) != 1:
        raise ThroughlineError(
            f"The entity rows have {'no time' if not times else 'the times ' + ', '.join(times)}: "
            f"name the time of the join {EVENT_TIME}."
        )
    if columns[times[0]] != "instant":
        raise ThroughlineError(
            f"Column {times[0]} of the entity rows holds no instants: give timestamps with a time zone, "
            "such as pd.to_datetime(..., utc=True)."
        )
    if missing := sorted({key for view in views for key in view.keys} - set(columns)):
        raise ThroughlineError(
            f"The entity rows lack the join key{'s' * (len(missing) > 1)} {', '.join(missing)}: add them as columns."
        )
    names = [*columns, *(name for view in views for name in view.features.values())]
    if taken := sorted({name for name in names if names.count(name) > 1}):
        raise ThroughlineError(
            f"The entity rows already have {', '.join(taken)}: drop or rename, or use full_feature_names=True."
        )
    return times[0]
