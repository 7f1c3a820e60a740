"""A Feast offline store over Delta tables at pinned versions. In any feature_store.yaml:

    offline_store:
      type: throughline.featurestore.delta_store.DeltaOfflineStore
      engine: polars                      # or spark, with spark_remote: sc://host:port
      on_demand: {view: module:function}  # the code of on-demand views

Beyond Feast's interface:

- Tables hold timestamps with a time zone. With `coerce_tz_aware: false`, times without one in a data frame are refused,
  as in SQL; otherwise Feast takes them for UTC.
- Entity rows in SQL are one SELECT, in the engine's dialect, over the project's registered sources by name, each at
  its pinned version; it can read no other table and no file.
- Without entity rows, the result has a row per entity and event time that the views have between start and end.
- On-demand views run the function that the settings name; code in the registry is not loaded.
- `filter_by_created_timestamp` is honoured. Of rows equal in entity, event time and creation any may be used.

Owns: Feast's interfaces. Does not own: tables (`delta_source.py`), entity rows in SQL (`sql_spine.py`), the join
(`asof.py`), the engines.
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
import pyarrow.parquet as parquet
from deltalake import write_deltalake
from feast import RepoConfig
from feast.data_source import DataSource
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
    source_of,
    to_arrow,
    write_frames,
)
from throughline.featurestore.polars_engine import PolarsEngine, frame_kinds, scan
from throughline.featurestore.retrieval import (
    Answer,
    Engine,
    FrameSpine,
    Pull,
    Spine,
    ViewRead,
    WindowSpine,
    check_spine,
)
from throughline.featurestore.spark_engine import SparkEngine
from throughline.featurestore.sql_spine import parse_spine
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
    """A feature without a column in the table; a KeyError, as in Feast's stores."""

    __str__ = Exception.__str__


class DeltaRetrievalJob(RetrievalJob):
    """Runs when its result is read."""

    def __init__(
        self,
        answer: Answer,
        full_feature_names: bool = False,
        on_demand_feature_views: list[OnDemandFeatureView] | None = None,
        metadata: Callable[[], RetrievalMetadata] | None = None,
    ) -> None:
        self._answer = answer
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = on_demand_feature_views or []
        self._describe = metadata

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @cached_property
    def metadata(self) -> RetrievalMetadata | None:
        return self._describe() if self._describe else None

    def batches(self) -> Iterator[pa.Table]:
        """The result in parts, before on-demand views; for results larger than memory."""
        return map(to_arrow, self._answer.batches())

    def to_polars(self) -> pl.DataFrame:
        return pl.DataFrame(self.to_arrow())

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return pa.concat_tables(self.batches())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal().to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result to a Delta table, and pin the storage to the written version."""
        if not isinstance(storage, SavedDatasetDeltaStorage):
            raise ThroughlineError(f"A {type(storage).__name__} cannot be written: give a SavedDatasetDeltaStorage.")
        if not allow_overwrite and current_version(storage.path) is not None:
            raise SavedDatasetLocationAlreadyExists(location=storage.path)
        if self._on_demand_feature_views:
            write_frames(storage.path, iter([self.to_polars()]))
        else:
            self._answer.write(storage.path)
        storage.version = current_version(storage.path)


class DeltaOfflineStore(OfflineStore):
    """Point-in-time retrieval from `DeltaSource`s; see the module's docstring."""

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
            sources = registry.list_data_sources(project, allow_cache=True)
            known = {source.name: source for source in sources if isinstance(source, DeltaSource)}
            spine = parse_spine(entity_df, config.offline_store.engine, known)
        else:
            spine = FrameSpine(pl.from_pandas(entity_df))
            check_spine(frame_kinds(spine.frame.schema), views)
        engine = _engine(config)

        def metadata() -> RetrievalMetadata:
            facts = engine.facts(spine, views)
            first, last = (spine.first, spine.last) if isinstance(spine, WindowSpine) else (facts.first, facts.last)
            return RetrievalMetadata(feature_refs, sorted({*facts.columns} - {facts.time}), first, last)

        return DeltaRetrievalJob(engine.historical(spine, views), full_feature_names, on_demand, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> DeltaRetrievalJob:
        columns = [*join_key_columns, *feature_name_columns]
        pull = _pull(data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date)
        return _pull_job(_engine(config).latest(pull, join_key_columns), join_key_columns)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> DeltaRetrievalJob:
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
        """Append rows to the view's table; they are read once a version with them is applied.

        Columns are the table's names or the view's. Raises, with nothing written, when a column is missing or too many,
        or a value does not fit its type.
        """
        source = source_of(feature_view)
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
        if not isinstance(destination, DeltaLoggingDestination):
            raise ThroughlineError(f"A {type(destination).__name__} is not written: give a DeltaLoggingDestination.")
        if isinstance(data, Path):
            data = parquet.read_table(data)
        options = storage_options(destination.path)
        write_deltalake(destination.path, data, mode="append", partition_by=[LOG_DATE_FIELD], storage_options=options)


def _append(source: DeltaSource, rows: pa.Table) -> None:
    table = open_table(source.path)
    schema = pa.schema(table.schema())
    if set(schema.names) != set(rows.column_names):
        missing, extra = set(schema.names) - set(rows.column_names), set(rows.column_names) - set(schema.names)
        raise ThroughlineError(
            f"Rows for {source.path} have missing columns {sorted(missing)} and unknown columns {sorted(extra)}: "
            "give exactly its columns."
        )
    for name in schema.names:
        given, held = rows.schema.field(name).type, schema.field(name).type
        if pa.types.is_timestamp(given) and getattr(held, "tz", None) and not given.tz:
            raise ThroughlineError(f"Column {name} for {source.path} has no time zone: give times with one.")
    try:
        fitting = rows.select(schema.names).cast(schema)
    except pa.ArrowInvalid as error:
        raise ThroughlineError(f"Rows do not fit {source.path} ({error}): give its types.") from error
    write_deltalake(table, fitting, mode="append")


def from_code(reference: str) -> PandasTransformation:
    """The transformation of an on-demand view as a reference (`module:function`, on data frames) to our own code.

    Feast writes a transformation to its registry pickled and as text; this one as the text of an import.
    """
    return _FromCode(udf=load_object(reference), udf_string=f"from {reference.replace(':', ' import ')}")


class _FromCode(PandasTransformation):
    def to_proto(self) -> Any:
        proto: Any = super().to_proto()
        proto.body = b""
        return proto


def _engine(config: RepoConfig) -> Engine:
    settings = config.offline_store
    return PolarsEngine() if settings.engine == "polars" else SparkEngine(settings.spark_remote)


def _read_of(view: FeatureView, features: list[str], full_names: bool, known_only: bool) -> ViewRead:
    source = source_of(view)
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
        event_time=source.event_column,
        created=source.created_column,
        ttl=view.ttl or None,
        known_only=known_only,
    )


def _on_demand(
    config: RepoConfig, feature_refs: list[str], registry: BaseRegistry, project: str
) -> list[OnDemandFeatureView]:
    """The on-demand views among the references, with our own code."""
    wanted = {reference.partition(":")[0] for reference in feature_refs}
    found = registry.list_on_demand_feature_views(project, allow_cache=True, skip_udf=True)
    views = [view for view in found if view.name in wanted]
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
    source: DataSource,
    columns: list[str],
    time: str,
    created: str | None,
    first: datetime | None,
    last: datetime | None,
) -> Pull:
    if not isinstance(source, DeltaSource):
        raise ThroughlineError(f"Source {source.name} is a {type(source).__name__}: this store reads DeltaSource only.")
    return Pull(
        source=source,
        columns=list(dict.fromkeys([*columns, time, *([created] if created else [])])),
        event_time=time,
        created=created or None,
        first=make_tzaware(first) if first else None,
        last=make_tzaware(last) if last else None,
    )


def _pull_job(answer: Answer, keys: list[str]) -> DeltaRetrievalJob:
    """Rows without join keys get the one that Feast gives a view without entities."""
    if keys:
        return DeltaRetrievalJob(answer)
    key = pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID)
    return DeltaRetrievalJob(Answer(lambda: (frame.with_columns(key) for frame in answer.batches())))
