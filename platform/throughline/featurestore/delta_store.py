"""A Feast offline store over Delta tables at pinned versions.

Use it in any feature_store.yaml:

    offline_store:
      type: throughline.featurestore.delta_store.DeltaOfflineStore
      engine: polars                      # or spark, with spark_remote: sc://host:port
      on_demand: {view: module:function}  # the code of on-demand views

What it promises beyond Feast's interface:

- Times. Tables must hold timestamps with a time zone. Feast itself reads times without one in a data frame as UTC;
  with `coerce_tz_aware: false` they reach this store and are refused, as they are in SQL.
- Entity rows in SQL are one SELECT, in the engine's dialect, over the project's registered sources by their names, each
  at its pinned version. It sees no other table and no file.
- Without entity rows, there is a row per entity and event time that the views have between start and end.
- On-demand views run the function that the settings name. What the registry holds of their code is not loaded.
- `filter_by_created_timestamp` is honoured. Rows equal in entity, event time and creation are told apart by nothing.

Owns: Feast's interfaces. Does not own: tables (`delta_source.py`), the join (`asof.py`), the engines, or who decides a
version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from deltalake import write_deltalake
from feast import RepoConfig
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LOG_DATE_FIELD, LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel
from feast.saved_dataset import SavedDatasetStorage
from feast.transformation.pandas_transformation import PandasTransformation
from feast.transformation.python_transformation import PythonTransformation
from feast.utils import _get_requested_feature_views_to_features_dict, compute_non_entity_date_range, make_tzaware
from pydantic import Field, model_validator

from throughline.featurestore.delta_source import (
    DeltaLoggingDestination,
    DeltaSource,
    SavedDatasetDeltaStorage,
    to_arrow,
)
from throughline.featurestore.polars_engine import PolarsEngine, frame_kinds, scan, write_frames
from throughline.featurestore.retrieval import (
    Answer,
    Engine,
    FrameSpine,
    Pull,
    Spine,
    SqlSpine,
    ViewRead,
    WindowSpine,
    check_spine,
    spine_time,
)
from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.delta import storage_options
from throughline.lakehouse.table import current_version, open_table
from throughline.usecase import load_object


class DeltaOfflineStoreConfig(FeastConfigBaseModel):
    type: Literal["throughline.featurestore.delta_store.DeltaOfflineStore"] = (
        "throughline.featurestore.delta_store.DeltaOfflineStore"
    )
    engine: Literal["polars", "spark"] = "polars"
    spark_remote: str | None = None
    on_demand: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _spark_needs_an_address(self) -> DeltaOfflineStoreConfig:
        if self.engine == "spark" and not self.spark_remote:
            raise ValueError("engine: spark needs spark_remote, the URL of a Spark Connect server (sc://host:port)")
        return self


class UnknownFeature(ThroughlineError, KeyError):
    """A feature whose column the table does not have. Also what Feast's stores raise."""

    __str__ = Exception.__str__


class DeltaRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for."""

    def __init__(
        self,
        answer: Answer,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: Callable[[], RetrievalMetadata] | None = None,
        constants: dict[str, str] | None = None,
    ) -> None:
        self._answer = answer
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._describe = metadata
        self._constants = constants or {}

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @cached_property
    def _metadata(self) -> RetrievalMetadata | None:
        return self._describe() if self._describe else None

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def batches(self) -> Iterator[pa.Table]:
        """The result in parts, before on-demand views: what does not fit in memory passes through."""
        for frame in self._answer.batches():
            yield to_arrow(frame.with_columns(pl.lit(value).alias(name) for name, value in self._constants.items()))

    def to_polars(self) -> pl.DataFrame:
        return pl.DataFrame(pl.from_arrow(self.to_arrow()))

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return pa.concat_tables(self.batches())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal().to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to a Delta table, and pin the storage to the version that this wrote."""
        assert isinstance(storage, SavedDatasetDeltaStorage), "give a SavedDatasetDeltaStorage"
        if not allow_overwrite and current_version(storage.path) is not None:
            raise SavedDatasetLocationAlreadyExists(location=storage.path)
        if self._on_demand_feature_views:
            write_frames(storage.path, iter([self.to_polars()]))
        else:
            self._answer.write(storage.path)
        storage.version = current_version(storage.path)


class DeltaOfflineStore(OfflineStore):
    """Point-in-time retrieval from `DeltaSource`s; see the module."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        on_demand = _on_demand(config, feature_refs, registry, project)
        wanted, _ = _get_requested_feature_views_to_features_dict(feature_refs, feature_views, on_demand)
        views = [
            _read_of(view, features, full_feature_names, filter_by_created_timestamp)
            for view, features in wanted.items()
        ]
        spine: Spine
        if entity_df is None:
            spine = WindowSpine(*compute_non_entity_date_range(feature_views, start_date, end_date))
        elif isinstance(entity_df, str):
            spine = _sql_spine(config, entity_df, registry, project)
        else:
            spine = FrameSpine(pl.from_pandas(entity_df))
            kinds = frame_kinds(spine.frame.schema)
            spine_time(kinds)
            check_spine(list(kinds), views)
        engine = _engine(config)

        def metadata() -> RetrievalMetadata:
            facts = engine.facts(spine, views)
            first, last = (spine.first, spine.last) if isinstance(spine, WindowSpine) else (facts.first, facts.last)
            return RetrievalMetadata(feature_refs, sorted({*facts.columns} - {facts.time}), first, last)

        return DeltaRetrievalJob(engine.historical(spine, views), full_feature_names, on_demand, metadata)

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
        columns = [*join_key_columns, *feature_name_columns]
        pull = _pull(data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date)
        return _pull_job(_engine(config).latest(pull, join_key_columns), join_key_columns)

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
        columns = [*join_key_columns, *feature_name_columns]
        pull = _pull(data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date)
        return _pull_job(_engine(config).rows(pull), join_key_columns)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the table under the view; they are read once a version that holds them is applied.

        Columns are the table's or, as Feast hands them over, the view's names. Raises when a column is missing or too
        many, or a value does not fit the column's type; nothing is written then.
        """
        source = _source_of(feature_view)
        _append(source, table.rename_columns([source.column(name) for name in table.column_names]))
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        destination = logging_config.destination
        assert isinstance(destination, DeltaLoggingDestination), "give a DeltaLoggingDestination"
        if isinstance(data, Path):
            import pyarrow.parquet as parquet

            data = parquet.read_table(data)
        options = storage_options(destination.path)
        write_deltalake(destination.path, data, mode="append", partition_by=[LOG_DATE_FIELD], storage_options=options)


def _append(source: DeltaSource, rows: pa.Table) -> None:
    table = open_table(source.path)
    schema = pa.schema(table.schema())
    if set(schema.names) != set(rows.column_names):
        missing, extra = set(schema.names) - set(rows.column_names), set(rows.column_names) - set(schema.names)
        raise ThroughlineError(
            f"Rows for {source.path} lack {sorted(missing) or 'nothing'} and have {sorted(extra) or 'nothing'} too "
            "much: bring exactly its columns."
        )
    for name in schema.names:
        given, held = rows.schema.field(name).type, schema.field(name).type
        if pa.types.is_timestamp(given) and getattr(held, "tz", None) and not given.tz:
            raise ThroughlineError(f"Column {name} for {source.path} holds no instants: give times with a time zone.")
    try:
        fitting = rows.select(schema.names).cast(schema)
    except pa.ArrowInvalid as error:
        raise ThroughlineError(f"Rows do not fit {source.path} ({error}): bring the types it has.") from error
    write_deltalake(table, fitting, mode="append")


def from_code(reference: str) -> PandasTransformation:
    """The transformation of an on-demand view whose code stays in the repository: `module:function`, on data frames.

    Feast writes the code of a transformation to its registry, pickled and as text; of this one, an import of it.
    """
    return _FromCode(udf=load_object(reference), udf_string=f"from {reference.replace(':', ' import ')}")


class _FromCode(PandasTransformation):
    def to_proto(self) -> Any:
        proto = super().to_proto()
        proto.body = b""
        return proto


def _engine(config: RepoConfig) -> Engine:
    settings = config.offline_store
    if settings.engine == "polars":
        return PolarsEngine()
    from throughline.featurestore.spark_engine import SparkEngine

    return SparkEngine(settings.spark_remote)


def _source_of(view: FeatureView) -> DeltaSource:
    if not isinstance(view.batch_source, DeltaSource):
        raise ThroughlineError(
            f"Feature view {view.name} reads a {type(view.batch_source).__name__}: this store reads DeltaSource only."
        )
    return view.batch_source


def _read_of(view: FeatureView, features: list[str], full_names: bool, known_only: bool) -> ViewRead:
    source = _source_of(view)
    if getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None):
        raise ThroughlineError(f"Feature view {view.name} transforms its source: write the result to a table instead.")
    prefix = f"{view.projection.name_alias or view.name}__" if full_names else ""
    columns = {source.column(name): f"{prefix}{name}" for name in features}
    if missing := sorted(set(columns) - set(scan(source).collect_schema())):
        raise UnknownFeature(
            f"Feature view {view.name} has no column {', '.join(missing)} in {source.address}: pin a version that has "
            "it, or take it out of the definition."
        )
    join_keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return ViewRead(
        source=source,
        keys={view.projection.join_key_map.get(key, key): source.column(key) for key in join_keys},
        features=columns,
        event_time=source.column(source.timestamp_field),
        created=source.column(source.created_timestamp_column) or None,
        ttl=view.ttl or None,
        known_only=known_only,
    )


def _sql_spine(config: RepoConfig, sql: str, registry: BaseRegistry, project: str) -> SqlSpine:
    """Which tables the query names. Raises when it is more than one SELECT over registered sources."""
    from sqlglot import exp, parse
    from sqlglot.errors import SqlglotError
    from sqlglot.optimizer.scope import traverse_scope

    known = {s.name: s for s in registry.list_data_sources(project, allow_cache=True) if isinstance(s, DeltaSource)}
    try:
        statements = parse(sql, read="spark" if config.offline_store.engine == "spark" else "postgres")
    except SqlglotError as error:
        raise ThroughlineError(f"The SQL for the entity rows does not parse: {str(error).splitlines()[0]}") from error
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise ThroughlineError("The SQL for the entity rows must be one SELECT.")
    read = [s for scope in traverse_scope(statements[0]) for s in scope.sources.values() if isinstance(s, exp.Table)]
    # anything but a plain name (another catalog, a path, a function that reads files) is shown as it was written
    named = {table.name if type(table.this) is exp.Identifier and not table.db else table.sql() for table in read}
    if strange := sorted(named - set(known)):
        raise ThroughlineError(
            f"The SQL for the entity rows reads {', '.join(strange)}: it sees the registered sources "
            f"{', '.join(sorted(known)) or '(there are none)'}."
        )
    return SqlSpine(sql, {name: known[name] for name in named})


def _on_demand(
    config: RepoConfig, feature_refs: list[str], registry: BaseRegistry, project: str
) -> list[OnDemandFeatureView]:
    """The on-demand views asked for, with our code in them."""
    asked = {reference.partition(":")[0] for reference in feature_refs}
    found = registry.list_on_demand_feature_views(project, allow_cache=True, skip_udf=True)
    views = [view for view in found if view.name in asked]
    for view in views:
        kinds = {"pandas": PandasTransformation, "python": PythonTransformation}
        reference = config.offline_store.on_demand.get(view.name)
        if reference is None or view.mode not in kinds:
            raise ThroughlineError(
                f"On-demand view {view.name} (mode {view.mode}) has no code here: name a function for it under "
                "offline_store.on_demand, of mode pandas or python."
            )
        view.feature_transformation = kinds[view.mode](udf=load_object(reference), udf_string=reference)
    return views


def _pull(
    source: DeltaSource,
    columns: list[str],
    time: str,
    created: str | None,
    first: datetime | None,
    last: datetime | None,
) -> Pull:
    return Pull(
        source=source,
        columns=list(dict.fromkeys([*columns, time, *([created] if created else [])])),
        event_time=time,
        created=created or None,
        first=make_tzaware(first) if first else None,
        last=make_tzaware(last) if last else None,
    )


def _pull_job(answer: Answer, keys: list[str]) -> DeltaRetrievalJob:
    return DeltaRetrievalJob(answer, constants={} if keys else {DUMMY_ENTITY_ID: DUMMY_ENTITY_VAL})
