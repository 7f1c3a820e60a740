"""Preparing a training dataset, once for all workers: training and validation rows, and the preprocessing.

Owns: the time rule, the validation rows, the name of the folder.
Does not own: how the dataset was made (`featurestore/dataset.py`), the files' format (`prepared.py`).

Training rows have their prediction time *and* their label time before the holdout: what could have been trained on at
that instant, and no label shares hours with the holdout. Validation rows are whole UTC days drawn by seed, one in
twenty: they show whether the fit goes well, and not how good the model will be, because the days around them are
trained on. A search chooses by later weeks: it gives an instant, and all rows from then on are validation.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from datetime import date, datetime
from pathlib import Path

import polars as pl

from throughline.experiment.prepared import FACTS, write_prepared
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import combine
from throughline.lakehouse.table import scan
from throughline.records import DatasetRecord

VALIDATION_ONE_DAY_IN = 20


def prepare(root: Path, dataset: DatasetRecord, seed: int, validation_from: datetime | None = None) -> Path:
    """The folder under `root` with the dataset's prepared rows, made if it is not there; safe for concurrent callers.

    Raises `ThroughlineError` when there is nothing to learn from.
    """
    folder = root / _name(dataset, seed, validation_from)
    if (folder / FACTS).exists():
        return folder
    columns = ["row_key", "prediction_time", "label_available_at", "label", *dataset.numeric, *dataset.categorical]
    table = scan(dataset.path, dataset.table.version)
    if absent := [name for name in columns if name not in table.collect_schema()]:
        lacking = f"lacks column(s) {', '.join(absent)}"
        raise ThroughlineError(f"Dataset {dataset.table} {lacking}: build the training dataset again.")
    train, validation = split_rows(table.select(columns).collect(), dataset, seed, validation_from)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.{threading.get_ident()}")
    draft.mkdir(parents=True, exist_ok=True)
    try:
        write_prepared(draft, train, validation, dataset.numeric, dataset.categorical, seed)
        try:
            draft.rename(folder)
        except OSError:
            if not (folder / FACTS).exists():  # otherwise a concurrent caller made the same content
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def split_rows(
    frame: pl.DataFrame, dataset: DatasetRecord, seed: int, validation_from: datetime | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training and validation rows, each ordered by `row_key`."""
    where = f"Dataset {dataset.table}"
    usable = frame.filter(
        (pl.col("prediction_time") < dataset.holdout_from) & (pl.col("label_available_at") < dataset.holdout_from)
    ).sort("row_key")
    if usable.is_empty():
        problem = f"has no row with a known label before the holdout ({dataset.holdout_from.isoformat()})"
        raise ThroughlineError(f"{where} {problem}: take an earlier data_from or a shorter holdout.")
    if not usable["label"].is_in([0, 1]).all() or usable["label"].has_nulls():
        raise ThroughlineError(f"{where} has labels other than 0 and 1: build the training dataset again.")
    if validation_from is None:
        held = pl.col("prediction_time").dt.date().is_in(validation_days(usable, seed))
        train, validation = usable.filter(~held), usable.filter(held)
    else:
        early = (pl.col("prediction_time") < validation_from) & (pl.col("label_available_at") < validation_from)
        train, validation = usable.filter(early), usable.filter(pl.col("prediction_time") >= validation_from)
    if train["label"].n_unique() < 2:
        found = f"all {train.height} training rows have the label {train['label'][0]}" if train.height else "no row"
        raise ThroughlineError(f"{where}: {found}: there is nothing to learn; take more days.")
    return train, validation


def validation_days(rows: pl.DataFrame, seed: int) -> list[date]:
    """One in twenty of the UTC days on which rows are predicted."""
    days = rows["prediction_time"].dt.date().unique().to_list()
    drawn = sorted(days, key=lambda day: hashlib.sha256(f"{seed}/{day}".encode()).digest())
    return drawn[: len(days) // VALIDATION_ONE_DAY_IN]


def _name(dataset: DatasetRecord, seed: int, validation_from: datetime | None) -> str:
    # a search trains on fewer columns of the same dataset
    columns = str([dataset.numeric, dataset.categorical])
    return combine(dataset.fingerprint, dataset.holdout_from.isoformat(), columns, str(seed), str(validation_from))[:32]
