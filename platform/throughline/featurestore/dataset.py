"""Training datasets: rows of the spine joined point in time with the feature service, at pinned versions.

Owns: which rows and columns a dataset has, and its fingerprint. Does not own: the join (`asof.py`), or training.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import polars as pl

from throughline.featurestore.request_features import add_request_features
from throughline.featurestore.spine import as_known
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.content import fingerprint_frame
from throughline.lakehouse.table import history, read, replace_all, scan
from throughline.records import DatasetRecord, FeatureStoreRecord
from throughline.usecase import UseCase
from throughline.usecase.requests import row_keys

LAYER, TABLE = "training", "dataset"
KEY, TIME = "row_key", "prediction_time"
NOTE = "throughline.dataset"  # in the notes of a commit: the record without its table version, which the commit gives
_FIXED = (KEY, TIME, "label_available_at", "label")
PART_ROWS = 2_000_000


def labelled_rows(usecase: UseCase, spine: pl.LazyFrame, as_of: datetime) -> pl.DataFrame:
    """Spine rows whose label was known at `as_of` (UTC), in order of prediction time, with their row key."""
    label = usecase.label
    known = as_known(usecase, spine, as_of).filter(pl.col(label.column).is_not_null()).collect()
    return known.with_columns(row_keys(usecase, known).alias(KEY)).sort(TIME, KEY)


def labelled_parts(usecase: UseCase, spine: pl.LazyFrame, as_of: datetime) -> Iterator[pl.DataFrame]:
    """`labelled_rows` in parts of about `PART_ROWS`, in the same order; no prediction time is divided."""
    if usecase.prediction.time_field not in usecase.prediction.key:
        # rows of one key may have different times then, and the newest known counts among all of them
        ranges = [pl.lit(True)]
    else:
        times = spine.select(TIME).collect().to_series().drop_nulls().sort()
        starts = times.gather_every(PART_ROWS).unique(maintain_order=True).to_list()
        ranges = [pl.col(TIME).is_between(start, end, "left") for start, end in pairwise(starts)]
        ranges += [pl.col(TIME) >= start for start in starts[-1:]]
    for part in ranges:
        rows = labelled_rows(usecase, spine.filter(part), as_of)
        if rows.height:
            yield rows


def build_dataset(settings: Settings, usecase: UseCase, store: FeatureStoreRecord, as_of: datetime) -> DatasetRecord:
    """Join and write the dataset as of an instant (UTC). Raises when no label was known by then.

    Rows pass in parts, through files in the home: in memory are a part and the views, or one column of all rows.
    """
    with tempfile.TemporaryDirectory(dir=settings.home, prefix="dataset-") as made:
        for number, rows in enumerate(labelled_parts(usecase, read(settings, store.spine), as_of)):
            _joined(settings, usecase, rows).write_parquet(Path(made) / f"{number:06}.parquet")
        if not any(Path(made).iterdir()):
            raise ThroughlineError(
                f"No labelled row of {usecase.name} was known at {as_of.isoformat()}: choose a later as-of."
            )
        return _written(settings, usecase, store, as_of, pl.scan_parquet(Path(made) / "*.parquet"))


def _joined(settings: Settings, usecase: UseCase, rows: pl.DataFrame) -> pl.DataFrame:
    """The columns of the dataset for labelled rows."""
    from throughline.featurestore.store import historical_features  # postpones feast (4 s)

    label, categorical = usecase.label, usecase.features.categories
    wanted = [KEY, TIME, *usecase.request]
    spine = rows.select(*dict.fromkeys(wanted))
    joined = add_request_features(usecase, historical_features(settings, usecase, spine, TIME))
    return joined.select(
        KEY,
        TIME,
        rows[label.known_at].alias("label_available_at"),
        rows[label.column].cast(pl.Int8).alias("label"),
        pl.col([name for name in joined.columns if name not in wanted]).cast(pl.Float64),
        *categorical,
    )


def _written(
    settings: Settings, usecase: UseCase, store: FeatureStoreRecord, as_of: datetime, dataset: pl.LazyFrame
) -> DatasetRecord:
    """Write the rows as the dataset's next version, with the record in the notes of the commit."""
    categorical = usecase.features.categories
    numeric = [name for name in dataset.collect_schema() if name not in (*_FIXED, *categorical)]
    holdout_from = as_of - usecase.evaluation.holdout
    service = usecase.features.service
    path = settings.table_path(usecase.name, LAYER, TABLE)
    inputs = [*store.sources, store.spine]
    views = {view.name: [each.name for each in view.features if each.name in numeric] for view in store.views}
    record = DatasetRecord(
        usecase=usecase.name,
        table=TableReference(f"{usecase.name}/{LAYER}/{TABLE}", 0),  # the commit below gives the version
        path=str(path),
        fingerprint=dataset_fingerprint(dataset, numeric, categorical, holdout_from, service),
        as_of=as_of,
        rows=dataset.select(pl.len()).collect().item(),
        numeric=numeric,
        categorical=categorical,
        service=service,
        views={view: names for view, names in views.items() if names},
        inputs=inputs,
        holdout_from=holdout_from,
    )
    notes = {"fingerprint": record.fingerprint, NOTE: record.model_dump_json(exclude={"table"})}
    return record.at(replace_all(path, dataset, notes, inputs=inputs))


def dataset_fingerprint(
    rows: pl.LazyFrame, numeric: Sequence[str], categorical: Sequence[str], holdout_from: datetime, service: str
) -> str:
    """Of the rows, which columns are features, what is held out, and the feature service."""
    return combine(fingerprint_frame(rows, [KEY]), *numeric, "|", *categorical, holdout_from.isoformat(), service)


def fingerprint_at_version(record: DatasetRecord) -> str:
    """The fingerprint of the table at the recorded version now, of the columns that the record names."""
    rows = scan(record.path, record.table.version).select(*_FIXED, *record.numeric, *record.categorical)
    return dataset_fingerprint(rows, record.numeric, record.categorical, record.holdout_from, record.service)


def find_dataset(
    settings: Settings, usecase: UseCase, fingerprint: str | None = None, version: int | None = None
) -> DatasetRecord:
    """An earlier dataset of the use case by its fingerprint (or how that begins), or by its table's version."""
    name = f"{usecase.name}/{LAYER}/{TABLE}"
    wanted = fingerprint or f"{name}@{version}"
    found = {}
    for commit in history(settings.lakehouse / name):
        if NOTE not in commit.notes:
            continue
        fields = {**json.loads(commit.notes[NOTE]), "table": TableReference(name, commit.version)}
        record = DatasetRecord.model_validate(fields)
        if commit.version == version or (fingerprint and record.fingerprint.startswith(fingerprint)):
            found.setdefault(record.fingerprint, record)
    if len(found) != 1:
        problem = "is not known" if not found else f"is the beginning of {len(found)} fingerprints"
        raise ThroughlineError(f"Dataset {wanted} {problem}: `throughline train` without it makes one as of now.")
    return next(iter(found.values()))
