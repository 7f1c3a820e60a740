"""Materialises feature views online: windows of pinned versions, or a view whole where a window is not enough.

Owns: reading what a window needs, writing it, the state beside it in the online store, and the lock that serialises the
writers of this home. Does not own: the rule (`windows.py`), how a store keeps the newest row (`online_stores.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator
from datetime import datetime, timedelta
from functools import cached_property

import polars as pl
from feast import FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from redis.exceptions import RedisError

from throughline.featurestore.delta_source import DeltaSource, source_of
from throughline.featurestore.delta_store import DeltaOfflineStore
from throughline.featurestore.layout import PUSHED
from throughline.featurestore.online_format import DUMMY_KEY, OnlineRows, open_rows, store_folder
from throughline.featurestore.online_stores import Row, online_store_of
from throughline.featurestore.pushed import PushedSource, tables_of, with_pushed
from throughline.featurestore.store import open_store
from throughline.featurestore.windows import EPOCH, Changes, ViewState, Window, compare, plan_window
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, open_table, scan
from throughline.records import OnlineStoreRecord
from throughline.usecase import UseCase


def materialise_until(
    settings: Settings, usecase: UseCase, until: datetime
) -> tuple[OnlineStoreRecord, dict[str, Window]]:
    """Make the online store hold, per entity, the newest row known up to `until` (UTC).

    Views are read at their registered versions, pushed rows at the newest. Returns the record, and per view the window
    that was written.
    """
    with online_writer(settings, usecase) as writer:
        windows = {view.name: writer.materialise_until(view, until, usecase.online.overlap) for view in writer.views}
        return OnlineStoreRecord(usecase=usecase.name, until=until, sources=writer.sources), windows


def view_states(settings: Settings, usecase: UseCase) -> dict[str, ViewState]:
    """By view that is online: until when it was materialised, from which versions, and its newest row."""
    with online_writer(settings, usecase) as writer:
        return {view.name: state for view in writer.views if (state := writer.state(view.name)) is not None}


class OnlineWriter:
    """The online store of a use case, as registered when this was made; hold it by `online_writer`."""

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        self._settings, self._usecase = settings, usecase.name
        self._lakehouse = str(settings.lakehouse)
        self._schemas: dict[str, pl.Schema] = {}
        self.store = open_store(settings, usecase)
        self.config = self.store.config
        self.online = online_store_of(self.config)

    @cached_property
    def rows(self) -> OnlineRows:
        """The rows of the store, as requests read them."""
        return open_rows(self._settings, self._usecase)

    @cached_property
    def views(self) -> list[FeatureView]:
        """The registered views that are online, each with the newest version of its pushed rows."""
        views = [view for view in self.store.list_feature_views() if view.online]
        for view in views:
            source = source_of(view)
            view.batch_source = with_pushed(source, current_version(f"{source.path}{PUSHED}"))
        return views

    @property
    def sources(self) -> list[TableReference]:
        return [self.pin(table.path, table.version) for view in self.views for table in tables_of(source_of(view))]

    def state(self, view: str) -> ViewState | None:
        """What the view's online rows were made from; None when never materialised, or when a write was cut short."""
        text = self.online.note(self.config, view)
        return None if text is None else ViewState.model_validate_json(text)

    def save_state(self, view: str, state: ViewState) -> None:
        self.online.put_note(self.config, view, state.model_dump_json())

    def last_push(self, view: str) -> datetime | None:
        """When a row of the view was last pushed (UTC)."""
        text = self.online.note(self.config, f"pushed:{view}")
        return None if text is None else datetime.fromisoformat(text)

    def save_last_push(self, view: str, at: datetime) -> None:
        self.online.put_note(self.config, f"pushed:{view}", at.isoformat())

    def materialise_until(self, view: FeatureView, until: datetime, overlap: timedelta) -> Window:
        """Make the view hold the newest rows up to `until` (UTC); returns the window that was written."""
        held, wanted = self.state(view.name), self._wanted(view, until)
        same = held is not None and held.definition == wanted.definition
        window = plan_window(held, wanted, _changes(view, held) if same else None, overlap)
        newest = self.write(view, window.start, until)
        if held is not None and window.start is not None:
            newest = max(newest, held.age)
        self.save_state(view.name, wanted.with_newest(newest))
        return window

    def write(self, view: FeatureView, start: datetime | None, end: datetime) -> tuple[datetime, datetime]:
        """Write the newest rows with event time in [start, end] (UTC, inclusive); a start of None replaces the view.

        Returns event and knowledge time of the newest row (both `EPOCH` without any). An older row never replaces a
        newer one. The state is removed first, so that a whole write follows one that is cut short.
        """
        source = source_of(view)
        job = DeltaOfflineStore.pull_latest_from_table_or_query(
            self.config,
            source,
            [source.column(name) for name in join_keys(view)],
            [source.column(feature.name) for feature in view.features],
            source.event_column,
            source.created_column,
            start or EPOCH,
            end,
        )
        rows = job.to_polars()
        names = {source.column(name): name for name in _columns(view)}
        data = to_rows(view, rows.rename({column: name for column, name in names.items() if column in rows.columns}))
        self.online.put_note(self.config, view.name, None)
        if start is None:
            self.online.replace(self.config, view, data)
        else:
            self.online.online_write_batch(self.config, view, data, None)
        return newest_of(data)

    def _wanted(self, view: FeatureView, until: datetime) -> ViewState:
        source = source_of(view)
        definition = {
            "path": source.path,
            "times": [source.timestamp_field, source.event_column],
            "columns": sorted((f.name, source.column(f.name), str(f.dtype)) for f in view.features),
            "keys": sorted((f.name, source.column(f.name), str(f.dtype)) for f in view.entity_columns),
        }
        return ViewState(
            until=until,
            definition=hashlib.sha256(json.dumps(definition).encode()).hexdigest(),
            source=self.pin(source.path, source.version),
            pushed=source.pushed_version if isinstance(source, PushedSource) else None,
        )

    def pin(self, path: str, version: int) -> TableReference:
        return TableReference(path.removeprefix(f"{self._lakehouse}/"), version)

    def schema(self, view: FeatureView) -> pl.Schema:
        """The columns of the view's table, at its version."""
        if view.name not in self._schemas:
            source = source_of(view)
            self._schemas[view.name] = scan(source.path, source.version).collect_schema()
        return self._schemas[view.name]


@contextlib.contextmanager
def online_writer(settings: Settings, usecase: UseCase) -> Generator[OnlineWriter]:
    """The online store, locked against other writers of this home. Raises one line when it does not answer."""
    with online_lock(settings, usecase):
        yield OnlineWriter(settings, usecase)


@contextlib.contextmanager
def online_lock(settings: Settings, usecase: UseCase) -> Generator[None]:
    with locked(store_folder(settings, usecase.name) / "online.lock"):
        try:
            yield
        except RedisError as error:
            reason = str(error).splitlines()[0]  # names the address at most, never the password
            raise ThroughlineError(
                f"The online store does not answer ({reason}): start it, or correct THROUGHLINE_ONLINE_STORE."
            ) from error


def to_rows(view: FeatureView, rows: pl.DataFrame) -> list[Row]:
    """A frame with the view's own column names as rows of an online store. A NaN is a missing value."""
    protos = {
        field.name: python_values_to_proto_values(rows[field.name].to_list(), field.dtype.to_value_type())
        for field in [*view.entity_columns, *view.features]
        if field.name != DUMMY_KEY
    }
    keys = join_keys(view)
    if not keys:
        keys, protos[DUMMY_KEY] = [DUMMY_KEY], [Value(string_val="")] * rows.height
    source = source_of(view)
    created = source.created_timestamp_column
    known = rows[created].to_list() if created else [None] * rows.height
    return [
        (
            EntityKey(join_keys=keys, entity_values=[protos[name][n] for name in keys]),
            {field.name: protos[field.name][n] for field in view.features},
            event,
            created_at,
        )
        for n, (event, created_at) in enumerate(zip(rows[source.timestamp_field].to_list(), known, strict=True))
    ]


def newest_of(rows: list[Row]) -> tuple[datetime, datetime]:
    """Event and knowledge time of the newest row; `EPOCH` without any."""
    return max(((event, created or event) for _, _, event, created in rows), default=(EPOCH, EPOCH))


def join_keys(view: FeatureView) -> list[str]:
    """Empty for a view without entity, whose table has no column for one."""
    return [field.name for field in view.entity_columns if field.name != DUMMY_KEY]


def _columns(view: FeatureView) -> list[str]:
    """The view's columns by Feast's names: join keys, features, times."""
    source = source_of(view)
    times = [name for name in (source.timestamp_field, source.created_timestamp_column) if name]
    return [*join_keys(view), *(field.name for field in view.features), *times]


def _changes(view: FeatureView, held: ViewState) -> Changes | None:
    """How the view's rows up to `held.until` differ from those it was made from; None when unknown."""
    total = Changes()
    versions = (held.source.version, held.pushed)
    for table, before in zip(tables_of(source_of(view)), versions, strict=False):
        if before == table.version:
            continue
        changes = _changes_of(view, table, before, held.until)
        if changes is None:
            return None
        total |= changes
    return total


def _changes_of(view: FeatureView, table: DeltaSource, before: int | None, until: datetime) -> Changes | None:
    columns = [table.column(name) for name in _columns(view)]
    try:
        sides = _rewritten(table.path, before, table.version)
    except ThroughlineError:  # a version is gone
        return None
    if sides is None:
        return None
    old, new = (side.filter(pl.col(table.event_column) <= until).select(columns).collect() for side in sides)
    if old.schema != new.schema:
        return None
    return compare(old, new, [table.column(key) for key in join_keys(view)], table.event_column, table.created_column)


def _rewritten(path: str, before: int | None, after: int) -> tuple[pl.LazyFrame, pl.LazyFrame] | None:
    """The rows of both versions in those partitions whose files differ; None when that is most of the table."""
    rows = scan(path, after)
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
