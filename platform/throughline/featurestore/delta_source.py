"""Feast's data sources, saved datasets and logging destinations as Delta tables at a version.

Owns: the address of a table at a version in Feast's terms, reading it, writing a result as one. Does not own: how rows
are chosen and joined (`polars_engine.py`, `spark_engine.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import write_deltalake
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.feature_logging import LoggingDestination
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.FeatureService_pb2 import LoggingConfig as LoggingConfigProto
from feast.protos.feast.core.SavedDataset_pb2 import SavedDatasetStorage as SavedDatasetStorageProto
from feast.saved_dataset import SavedDatasetStorage
from feast.type_map import pa_to_feast_value_type
from feast.value_type import ValueType

from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.delta import storage_options
from throughline.lakehouse.table import open_table, scan

VERSION_TAG = "delta_version"


class DeltaSource(DataSource):
    """A Delta table at a pinned version; `path` is a folder or any URI that delta-rs reads.

    `timestamp_field` and `created_timestamp_column` must be timestamps with a time zone. The version is also a tag:
    Feast compares tags to decide whether a source changed, and would never apply a change of version alone.
    """

    def __init__(
        self, *, name: str, path: str, version: int, tags: dict[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name=name, tags={**(tags or {}), VERSION_TAG: str(version)}, **kwargs)
        self.path = path
        self.version = version

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, DeltaSource) and self.path == other.path

    __hash__ = DataSource.__hash__

    def column(self, name: str) -> str:
        """What the table calls the column that Feast calls `name`."""
        return {mapped: column for column, mapped in self.field_mapping.items()}.get(name, name)

    @property
    def event_column(self) -> str:
        """The table's column of event times."""
        return self.column(self.timestamp_field)

    @property
    def created_column(self) -> str | None:
        """The table's column with the time at which a row was created, where there is one."""
        return self.column(self.created_timestamp_column) if self.created_timestamp_column else None

    def scan(self) -> pl.LazyFrame:
        """The rows at the version. Raises when it is no table, the version is gone, or its times have no time zone."""
        rows = scan(self.path, self.version)
        schema = rows.collect_schema()
        for column in filter(None, (self.event_column, self.created_column)):
            if column not in schema:
                raise ThroughlineError(
                    f"Source {self.name}: no column {column} in {self.address}: it has {', '.join(schema)}."
                )
            if getattr(schema[column], "time_zone", None) is None:
                raise ThroughlineError(
                    f"Source {self.name}: column {column} of {self.address} holds no instants ({schema[column]}): "
                    "write it as a timestamp with a time zone (UTC)."
                )
        return rows

    @property
    def address(self) -> str:
        return f"{self.path}@{self.version}"

    def source_type(self) -> DataSourceProto.SourceType.ValueType:
        return DataSourceProto.CUSTOM_SOURCE

    def get_table_query_string(self) -> str:
        return f"delta.`{self.path}` VERSION AS OF {self.version}"

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> DeltaSource:
        options = json.loads(data_source.custom_options.configuration)
        return DeltaSource(
            name=data_source.name,
            path=options["path"],
            version=options["version"],
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{type(self).__module__}.{type(self).__name__}",
            custom_options=_options(self.path, self.version),
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        self.scan()

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return pa_to_feast_value_type

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        return [(field.name, str(field.type)) for field in to_arrow(self.scan().head(0).collect()).schema]


def source_of(view: FeatureView) -> DeltaSource:
    """The table behind a feature view. Raises when its source is of another kind."""
    if not isinstance(view.batch_source, DeltaSource):
        raise ThroughlineError(
            f"Feature view {view.name} reads a {type(view.batch_source).__name__}: this store reads DeltaSource only."
        )
    return view.batch_source


class SavedDatasetDeltaStorage(SavedDatasetStorage):
    """A saved dataset as a Delta table; writing it pins the version."""

    _proto_attr_name = "custom_storage"

    def __init__(self, path: str, version: int | None = None) -> None:
        self.path = path
        self.version = version

    @staticmethod
    def from_proto(storage_proto: SavedDatasetStorageProto) -> SavedDatasetDeltaStorage:
        options = json.loads(storage_proto.custom_storage.configuration)
        return SavedDatasetDeltaStorage(options["path"], options["version"])

    def to_proto(self) -> SavedDatasetStorageProto:
        return self._custom_storage_proto(_options(self.path, self.version))

    def to_data_source(self) -> DeltaSource:
        if self.version is None:
            raise ThroughlineError(f"The saved dataset at {self.path} was not written yet: create it first.")
        # Feast reads a saved dataset by a column of this name, whatever the entity rows called theirs
        return DeltaSource(name=self.path, path=self.path, version=self.version, timestamp_field="event_timestamp")

    @staticmethod
    def from_data_source(data_source: DataSource) -> SavedDatasetDeltaStorage:
        assert isinstance(data_source, DeltaSource)
        return SavedDatasetDeltaStorage(data_source.path)


class DeltaLoggingDestination(LoggingDestination):
    """Where `write_logged_features` appends served features; reading it takes the version of that moment."""

    _proto_kind = "throughline_delta"

    def __init__(self, *, path: str) -> None:
        self.path = path

    @classmethod
    def from_proto(cls, config_proto: LoggingConfigProto) -> DeltaLoggingDestination:
        return cls(path=config_proto.custom_destination.config["path"])

    def to_proto(self) -> LoggingConfigProto:
        kind, config = self._proto_kind, {"path": self.path}
        return LoggingConfigProto(custom_destination=LoggingConfigProto.CustomDestination(kind=kind, config=config))

    def to_data_source(self) -> DeltaSource:
        return DeltaSource(name=self.path, path=self.path, version=open_table(self.path).version())


def _options(path: str, version: int | None) -> DataSourceProto.CustomSourceOptions:
    return DataSourceProto.CustomSourceOptions(configuration=json.dumps({"path": path, "version": version}).encode())


def write_frames(path: str, frames: Iterator[pl.DataFrame]) -> None:
    """Write frames of one schema as a Delta table, as its next version where there is one; in one commit."""
    first = next(frames)
    schema = to_arrow(first).schema
    batches = (batch for frame in chain([first], frames) for batch in to_arrow(frame).cast(schema).to_batches())
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    write_deltalake(path, reader, mode="overwrite", schema_mode="overwrite", storage_options=storage_options(path))


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    """As Arrow, in the types that Feast's maps know: `string` and `list<item>`, not their large or view variants."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.cast(pa.schema([field.with_type(_feast_type(field.type)) for field in table.schema]))


def _feast_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_feast_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_feast_type(field.type)) for field in kind])
    return kind
