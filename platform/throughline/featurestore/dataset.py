"""Training datasets: rows of the spine joined point in time with the feature service, at pinned versions.

Owns: which rows and columns a dataset has, and its identity. Does not own: the join (`asof.py`), or training.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from throughline.errors import ThroughlineError
from throughline.experiment.fingerprint import combine, fingerprint_frame
from throughline.featurestore.spine import as_known
from throughline.featurestore.store import historical
from throughline.lakehouse.table import read, replace_all
from throughline.records import DatasetRecord, FeatureStoreRecord, TableVersion
from throughline.requests import row_keys
from throughline.settings import Settings
from throughline.usecase import UseCase, load_object

LAYER, TABLE = "training", "dataset"
KEY, TIME = "row_key", "prediction_time"


def labelled_rows(usecase: UseCase, spine: pl.LazyFrame, as_of: datetime) -> pl.DataFrame:
    """Spine rows whose label was known at `as_of` (UTC), in order of prediction time, with their row key."""
    label = usecase.label
    known = as_known(usecase, spine, as_of).filter(pl.col(label.column).is_not_null()).collect()
    return known.with_columns(row_keys(usecase, known).alias(KEY)).sort(TIME, KEY)


def build_dataset(settings: Settings, usecase: UseCase, store: FeatureStoreRecord, as_of: datetime) -> DatasetRecord:
    """Join and write the dataset as of an instant (UTC). Raises when no label was known by then."""
    label = usecase.label
    rows = labelled_rows(usecase, read(settings, store.spine), as_of)
    if rows.is_empty():
        raise ThroughlineError(
            f"No labelled row of {usecase.name} was known at {as_of.isoformat()}: choose a later as-of."
        )
    wanted = [KEY, TIME, *usecase.request]
    spine = rows.select(*dict.fromkeys(wanted))
    joined = load_object(usecase.features.request_features)(historical(settings, usecase, spine, TIME))
    numeric = [name for name in joined.columns if name not in wanted]
    categorical = usecase.features.categories
    dataset = joined.select(
        KEY,
        TIME,
        rows[label.known_at].alias("label_available_at"),
        rows[label.column].cast(pl.Int8).alias("label"),
        pl.col(numeric).cast(pl.Float64),
        *categorical,
    )
    holdout_from = as_of - usecase.evaluation.holdout
    identity = combine(
        fingerprint_frame(dataset, [KEY]),
        *numeric,
        "|",
        *categorical,
        holdout_from.isoformat(),
        usecase.features.service,
    )
    path = settings.table_path(usecase.name, LAYER, TABLE)
    version = replace_all(path, dataset, {"fingerprint": identity})
    return DatasetRecord(
        usecase=usecase.name,
        table=TableVersion(table=f"{usecase.name}/{LAYER}/{TABLE}", version=version),
        path=str(path),
        fingerprint=identity,
        as_of=as_of,
        rows=dataset.height,
        numeric=numeric,
        categorical=categorical,
        inputs=[*store.sources, store.spine],
        holdout_from=holdout_from,
    )
