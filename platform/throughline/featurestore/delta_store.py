"""A Feast offline store over Delta tables at pinned versions, read with Polars.

Use it in any feature_store.yaml:

    offline_store: {type: throughline.featurestore.delta_store.DeltaOfflineStore}

Owns: the Feast plug-in interfaces. Does not own: the join itself (`asof.py`), or who decides a version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import RepoConfig
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import (
    get_expected_join_keys,
    get_feature_view_query_context,
    infer_event_timestamp_from_entity_df,
)
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import FeastConfigBaseModel
from feast.value_type import ValueType

from throughline.featurestore.asof import join_asof

VERSION_TAG = "delta_version"

_VALUE_TYPES = {
    "string": ValueType.STRING,
    "large_string": ValueType.STRING,
    "int32": ValueType.INT32,
    "int64": ValueType.INT64,
    "float": ValueType.FLOAT,
    "double": ValueType.DOUBLE,
    "bool": ValueType.BOOL,
}


class DeltaSource(DataSource):
    """A Delta table at a pinned version.

    The version stands in the tags too: Feast compares tags when it decides whether a source changed, and would
    otherwise never apply a change of version alone.
    """

    def __init__(self, *, name: str, path: str, version: int, tags: dict[str, str] | None = None, **kwargs: Any):
        super().__init__(name=name, tags={**(tags or {}), VERSION_TAG: str(version)}, **kwargs)
        self.path = path
        self.version = version

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, DeltaSource) and self.path == other.path

    __hash__ = DataSource.__hash__

    def scan(self) -> pl.LazyFrame:
        return pl.scan_delta(self.path, version=self.version)

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
        options = json.dumps({"path": self.path, "version": self.version}).encode()
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{type(self).__module__}.{type(self).__name__}",
            custom_options=DataSourceProto.CustomSourceOptions(configuration=options),
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        names = self.scan().collect_schema().names()
        mapped = [self.field_mapping.get(name, name) for name in names]
        if self.timestamp_field and self.timestamp_field not in mapped:
            raise ValueError(f"{self.name}: no column {self.timestamp_field} in {self.path} at version {self.version}")

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return lambda name: ValueType.UNIX_TIMESTAMP if name.startswith("timestamp") else _VALUE_TYPES[name]

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        schema = pl.DataFrame(schema=self.scan().collect_schema()).to_arrow().schema
        return [(field.name, str(field.type)) for field in schema]


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    type: Literal["throughline.featurestore.delta_store.DeltaOfflineStore"] = (
        "throughline.featurestore.delta_store.DeltaOfflineStore"
    )


class DeltaRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for."""

    def __init__(
        self,
        run: Callable[[], pl.DataFrame],
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._run = run
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def to_polars(self) -> pl.DataFrame:
        return self._run()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        table = self._run().to_arrow()
        # Feast's type maps know string, not large_string
        return table.cast(
            pa.schema(
                pa.field(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema
            )
        )

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal().to_pandas()


class DeltaOfflineStore(OfflineStore):
    """Point-in-time retrieval from `DeltaSource`s."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **_: Any,
    ) -> RetrievalJob:
        if not isinstance(entity_df, pd.DataFrame):
            raise ValueError("entity_df must be a pandas DataFrame: SQL and entity-less retrieval are not supported")
        time_column = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        expected = get_expected_join_keys(project, feature_views, registry)
        if missing := sorted(expected - set(entity_df.columns)):
            raise ValueError(f"entity_df lacks the join keys {', '.join(missing)}")
        contexts = get_feature_view_query_context(
            feature_refs,
            feature_views,
            registry,
            project,
            (entity_df[time_column].min(), entity_df[time_column].max()),
        )
        sources = {view.projection.name_to_use(): view.batch_source for view in feature_views}

        def run() -> pl.DataFrame:
            spine = pl.from_pandas(entity_df)
            if spine.schema[time_column].time_zone is None:
                spine = spine.with_columns(pl.col(time_column).dt.replace_time_zone("UTC"))
            for context in contexts:
                source = sources[context.name]
                # the context speaks of columns as the table names them, `field_mapping` leads to the feature's name
                prefix = f"{context.name}__" if full_feature_names else ""
                names = {f: f"{prefix}{context.field_mapping.get(f, f)}" for f in context.features}
                selections = (e.split(" AS ") for e in context.entity_selections if DUMMY_ENTITY_ID not in e)
                keys = {join: pl.col(column).alias(join) for column, join in selections}
                spine = join_asof(
                    spine,
                    source.scan().with_columns(*keys.values()),
                    keys=list(keys),
                    spine_time=time_column,
                    row_time=context.timestamp_field,
                    columns=names,
                    created=context.created_timestamp_column,
                    ttl=pd.Timedelta(seconds=context.ttl).to_pytimedelta() if context.ttl else None,
                )
            return spine

        return DeltaRetrievalJob(
            run,
            full_feature_names,
            OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            RetrievalMetadata(
                features=feature_refs,
                keys=sorted(set(entity_df.columns) - {time_column}),
                min_event_timestamp=entity_df[time_column].min(),
                max_event_timestamp=entity_df[time_column].max(),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DeltaSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        def run() -> pl.DataFrame:
            order = [c for c in (timestamp_field, created_timestamp_column) if c]
            rows = _window(data_source, timestamp_field, start_date, end_date).select(
                *dict.fromkeys([*join_key_columns, *feature_name_columns, *order])
            )
            rows = rows.sort(order, maintain_order=True)
            if not join_key_columns:
                return rows.tail(1).with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID)).collect()
            return rows.unique(join_key_columns, keep="last", maintain_order=True).collect()

        return DeltaRetrievalJob(run)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DeltaSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        columns = dict.fromkeys(
            c
            for c in (*join_key_columns, *feature_name_columns, timestamp_field, created_timestamp_column)
            if c is not None and c != ""
        )

        def run() -> pl.DataFrame:
            rows = _window(data_source, timestamp_field, start_date, end_date).select(*columns)
            if not join_key_columns:
                rows = rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
            return rows.collect()

        return DeltaRetrievalJob(run)


def _window(source: DeltaSource, column: str, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """Rows of the source with event time in [start, end], both UTC and inclusive, as Feast's own stores have it."""
    rows = source.scan()
    time = pl.col(column)
    if start is not None:
        rows = rows.filter(time >= pl.lit(start.astimezone(UTC)))
    if end is not None:
        rows = rows.filter(time <= pl.lit(end.astimezone(UTC)))
    return rows
