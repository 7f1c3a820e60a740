"""Bringing feature views online: windows of pinned versions, whole where a window would not be enough.

Owns: reading what a window needs, writing it, the record of it in the online store, and that one process of this home
writes at a time. Does not own: the rule (`windows.py`), how stores keep the newest row (`online_stores.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING

import polars as pl

from throughline.featurestore.online_format import DUMMY_KEY, OnlineRows, open_rows, store_folder
from throughline.featurestore.store import open_store
from throughline.featurestore.windows import EPOCH, Changes, ViewState, Window, compare, plan_window
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, open_table, scan
from throughline.records import OnlineStoreRecord
from throughline.usecase import UseCase

if TYPE_CHECKING:
    from feast import FeatureView

    from throughline.featurestore.delta_source import DeltaSource
    from throughline.featurestore.online_stores import NewestOnlineStore, Row


def bring_online(settings: Settings, usecase: UseCase, until: datetime) -> tuple[OnlineStoreRecord, dict[str, Window]]:
    """Have the online store hold, per entity, the newest row known up to `until` (UTC); and what that took, per view.

    Views are read at the versions they are registered at, pushed rows as they stand.
    """
    with online_writer(settings, usecase) as writer:
        windows = {view.name: writer.bring(view, until, usecase.online.overlap) for view in writer.views}
        return OnlineStoreRecord(usecase=usecase.name, until=until, sources=writer.sources), windows


def materialise(settings: Settings, usecase: UseCase, start: datetime, end: datetime) -> None:
    """Write to the online store, per entity, the newest row with event time in [start, end] (UTC, inclusive).

    A window written twice leaves the same values, and an older one never hides a newer: overlapping windows are
    welcome, late rows are then picked up. From `EPOCH` on, what is there is replaced.
    """
    with online_writer(settings, usecase) as writer:
        for view in writer.views:
            writer.write(view, start, end)


def view_states(settings: Settings, usecase: UseCase) -> dict[str, ViewState]:
    """What is on record of each view that is online: up to when, from which versions, and its newest row."""
    with online_writer(settings, usecase) as writer:
        states = {view.name: writer.state(view.name) for view in writer.views}
    return {name: state for name, state in states.items() if state is not None}


class OnlineWriter:
    """The online store of a use case, as registered when this was made; hold it by `online_writer`."""

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config

        self._open_rows = partial(open_rows, settings, usecase.name)
        self._lakehouse = str(settings.lakehouse)
        self._schemas: dict[str, pl.Schema] = {}
        self.store = open_store(settings, usecase)
        self.config = self.store.config
        self.online: NewestOnlineStore = get_online_store_from_config(self.config.online_store)

    @cached_property
    def rows(self) -> OnlineRows:
        """What the store holds, as requests read it."""
        return self._open_rows()

    @cached_property
    def views(self) -> list[FeatureView]:
        """The registered views that are online, each with the rows pushed to it as they stand."""
        from throughline.featurestore.pushed import SUFFIX, with_pushed

        views = [view for view in self.store.list_feature_views() if view.online]
        for view in views:
            source = view.batch_source
            view.batch_source = with_pushed(source, current_version(f"{source.path}{SUFFIX}"))
        return views

    @property
    def sources(self) -> list[TableReference]:
        return [self.pin(source.path, source.version) for view in self.views for source in _tables(view.batch_source)]

    def state(self, view: str) -> ViewState | None:
        """What the view's online rows were made from; None when it was never brought, or a write was cut short."""
        text = self.online.note(self.config, view)
        return None if text is None else ViewState.model_validate_json(text)

    def last_push(self, view: str) -> datetime | None:
        """When a row of the view was last pushed (UTC)."""
        text = self.online.note(self.config, f"pushed:{view}")
        return None if text is None else datetime.fromisoformat(text)

    def note_push(self, view: str, at: datetime) -> None:
        self.online.put_note(self.config, f"pushed:{view}", at.isoformat())

    def keep(self, view: str, state: ViewState) -> None:
        self.online.put_note(self.config, view, state.model_dump_json())

    def bring(self, view: FeatureView, until: datetime, overlap: timedelta) -> Window:
        """Have the view stand at `until` (UTC), and what that took."""
        held, wanted = self.state(view.name), self._wanted(view, until)
        same = held is not None and held.definition == wanted.definition
        window = plan_window(held, wanted, _changes(view, held) if same else None, overlap)
        brought = self._put(view, window.start, until)
        self.keep(view.name, wanted.seen(brought if window.start is None else max(brought, held.age)))
        return window

    def write(self, view: FeatureView, start: datetime, end: datetime) -> None:
        """Write a window. The record stands as long as it says all that the view's rows were made from."""
        held, wanted = self.state(view.name), self._wanted(view, end)
        if start <= EPOCH:
            self.keep(view.name, wanted.seen(self._put(view, None, end)))
            return
        brought = self._put(view, start, end)
        if held and start <= held.until and (held.definition, held.source) == (wanted.definition, wanted.source):
            onward = held.model_copy(update={"until": max(held.until, end)})
            self.keep(view.name, onward.seen(max(brought, held.age)))

    def _put(self, view: FeatureView, start: datetime | None, end: datetime) -> tuple[datetime, datetime]:
        """Write the newest rows; returns event and knowledge time of the newest (both `EPOCH` without any).

        The record is gone meanwhile: a write that is cut short is followed by a whole one.
        """
        from throughline.featurestore.delta_store import DeltaOfflineStore

        source = view.batch_source
        names = _columns(view)
        event, created = source.timestamp_field, source.created_timestamp_column or None
        job = DeltaOfflineStore.pull_latest_from_table_or_query(
            self.config,
            source,
            [source.column(name) for name in names.keys],
            [source.column(name) for name in names.features],
            source.column(event),
            source.column(created) if created else None,
            start or EPOCH,
            end,
        )
        rows = job.to_polars()
        rows = rows.rename({source.column(name): name for name in names.all if source.column(name) in rows.columns})
        data = to_rows(view, rows)
        self.online.put_note(self.config, view.name, None)
        if start is None:
            self.online.replace(self.config, view, data)
        else:
            self.online.online_write_batch(self.config, view, data, None)
        return newest_of(data)

    def _wanted(self, view: FeatureView, until: datetime) -> ViewState:
        source = view.batch_source
        said = {
            "path": source.path,
            "times": [source.timestamp_field, source.column(source.timestamp_field)],
            "columns": sorted((f.name, source.column(f.name), str(f.dtype)) for f in view.features),
            "keys": sorted((f.name, source.column(f.name), str(f.dtype)) for f in view.entity_columns),
        }
        return ViewState(
            until=until,
            definition=hashlib.sha256(json.dumps(said).encode()).hexdigest(),
            source=self.pin(source.path, source.version),
            pushed=getattr(source, "pushed_version", None),
        )

    def pin(self, path: str, version: int) -> TableReference:
        return TableReference(path.removeprefix(f"{self._lakehouse}/"), version)

    def schema(self, view: FeatureView) -> pl.Schema:
        """The columns of the view's table, at its version."""
        if view.name not in self._schemas:
            source = view.batch_source
            self._schemas[view.name] = scan(source.path, source.version).collect_schema()
        return self._schemas[view.name]


@contextlib.contextmanager
def online_writer(settings: Settings, usecase: UseCase) -> Iterator[OnlineWriter]:
    """The online store, with other writers of this home kept out. Raises one line when it does not answer."""
    with held_alone(settings, usecase):
        yield OnlineWriter(settings, usecase)


@contextlib.contextmanager
def held_alone(settings: Settings, usecase: UseCase) -> Iterator[None]:
    from redis.exceptions import RedisError

    with locked(store_folder(settings, usecase.name) / "online.lock"):
        try:
            yield
        except RedisError as error:
            # Redis' own words name the address at most, never the password
            raise ThroughlineError(
                f"The online store does not answer ({str(error).splitlines()[0]}): start it, or correct "
                "THROUGHLINE_ONLINE_STORE."
            ) from error


def to_rows(view: FeatureView, rows: pl.DataFrame) -> list[Row]:
    """A frame with the view's own column names, as an online store takes it. A NaN is a missing value."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.type_map import python_values_to_proto_values

    protos = {
        field.name: python_values_to_proto_values(rows[field.name].to_list(), field.dtype.to_value_type())
        for field in [*view.entity_columns, *view.features]
        if field.name != DUMMY_KEY
    }
    keys = join_keys(view)
    if not keys:
        keys, protos[DUMMY_KEY] = [DUMMY_KEY], [Value(string_val="")] * rows.height
    features = [field.name for field in view.features]
    source = view.batch_source
    created = source.created_timestamp_column
    times = rows[source.timestamp_field].to_list()
    known = rows[created].to_list() if created else [None] * rows.height
    return [
        (
            EntityKey(join_keys=keys, entity_values=[protos[name][n] for name in keys]),
            {name: protos[name][n] for name in features},
            times[n],
            known[n],
        )
        for n in range(rows.height)
    ]


def newest_of(rows: list[Row]) -> tuple[datetime, datetime]:
    """Event and knowledge time of the newest row; `EPOCH` without any."""
    return max(((event, created or event) for _, _, event, created in rows), default=(EPOCH, EPOCH))


def join_keys(view: FeatureView) -> list[str]:
    """Empty for a view of one entity for all."""
    return [field.name for field in view.entity_columns if field.name != DUMMY_KEY]


@dataclass(frozen=True)
class _Columns:
    keys: list[str]
    features: list[str]
    times: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.keys, *self.features, *self.times]


def _columns(view: FeatureView) -> _Columns:
    """The view's columns by Feast's names; a view of one entity for all has no keys in its table."""
    source = view.batch_source
    return _Columns(
        join_keys(view),
        [field.name for field in view.features],
        [name for name in (source.timestamp_field, source.created_timestamp_column) if name],
    )


def _tables(source: DeltaSource) -> list[DeltaSource]:
    pushed = getattr(source, "pushed", None)
    return [source] if pushed is None else [source, pushed]


def _changes(view: FeatureView, held: ViewState) -> Changes | None:
    """How the view's rows up to `held.until` differ from those it was made from; None when it cannot be said."""
    together = Changes()
    for source, before in zip(_tables(view.batch_source), (held.source.version, held.pushed), strict=False):
        if (changes := _changes_of(view, source, before, held.until)) is None:
            return None
        together |= changes
    return together


def _changes_of(view: FeatureView, source: DeltaSource, before: int | None, until: datetime) -> Changes | None:
    names = _columns(view)
    event = source.column(source.timestamp_field)
    columns = [source.column(name) for name in names.all]
    try:
        sides = _rewritten(source.path, before, source.version)
    except ThroughlineError:  # a version is gone
        return None
    if sides is None:
        return None
    old, new = (side.filter(pl.col(event) <= until).select(columns).collect() for side in sides)
    if old.schema != new.schema:
        return None
    created = source.created_timestamp_column
    return compare(old, new, [source.column(k) for k in names.keys], event, source.column(created) if created else None)


def _rewritten(path: str, before: int | None, after: int) -> tuple[pl.LazyFrame, pl.LazyFrame] | None:
    """What two versions of a table do not share, by partitions whose files differ. None when that is most of it."""
    rows = scan(path, after)
    if before == after:
        return rows.head(0), rows.head(0)
    if before is None:
        return rows.head(0), rows
    old, new = (_files(path, version) for version in (before, after))
    paths = set(old["path"]) ^ set(new["path"])
    touched = [files.filter(pl.col("path").is_in(paths)) for files in (old, new)]
    if sum(files["num_records"].sum() for files in touched) > new["num_records"].sum():
        return None
    old_rows, partitions = scan(path, before), [name for name in new.columns if name.startswith("partition.")]
    for name in partitions:
        values = pl.concat([files[name] for files in touched]).unique().to_list()
        here = pl.col(name.removeprefix("partition.")).is_in(values, nulls_equal=True)
        old_rows, rows = old_rows.filter(here), rows.filter(here)
    return old_rows, rows


def _files(path: str, version: int) -> pl.DataFrame:
    return pl.DataFrame(open_table(path, version).get_add_actions(flatten=True))
