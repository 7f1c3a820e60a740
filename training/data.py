"""The rows of a training: which ones, in which order, on which worker.

Owns: the time rule, the validation days, the shards. Does not own: how the dataset was made.

Trained on are rows whose prediction time *and* label time are before the holdout begins: what could have been trained
on at that instant, and no row's label shares hours with the holdout.
Validation is whole UTC days drawn by seed, one in twenty. It shows whether the fit goes well; it is no forecast of
quality (days around it are trained on), which is what the holdout is for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from throughline.errors import ThroughlineError
from throughline.lakehouse.table import scan
from throughline.records import DatasetRecord

VALIDATION_ONE_DAY_IN = 20


@dataclass(frozen=True)
class Rows:
    """Training and validation rows, each ordered by `row_key`."""

    train: pl.DataFrame
    validation: pl.DataFrame

    @property
    def trained_from(self) -> datetime:
        return self.train["prediction_time"].min()

    @property
    def trained_until(self) -> datetime:
        return self.train["prediction_time"].max()

    @property
    def base_rate(self) -> float:
        return float(self.train["label"].mean())


def load_rows(dataset: DatasetRecord, seed: int) -> Rows:
    """Read the pinned version and split it. Raises `ThroughlineError` when there is nothing to learn from."""
    return split_rows(scan(dataset.path, dataset.table.version).collect(), dataset, seed)


def split_rows(frame: pl.DataFrame, dataset: DatasetRecord, seed: int) -> Rows:
    """The rows that may be trained on, apart from those of validation days."""
    where = f"Dataset {dataset.table}"
    needed = ["row_key", "prediction_time", "label_available_at", "label", *dataset.numeric, *dataset.categorical]
    if absent := [name for name in needed if name not in frame.columns]:
        raise ThroughlineError(f"{where} lacks column(s) {', '.join(absent)}: build the training dataset again.")
    usable = frame.select(needed).filter(
        (pl.col("prediction_time") < dataset.holdout_from) & (pl.col("label_available_at") < dataset.holdout_from)
    )
    if usable.is_empty():
        raise ThroughlineError(
            f"{where} has no row with a known label before the holdout ({dataset.holdout_from.isoformat()}): "
            "take an earlier data_from or a shorter holdout."
        )
    if not usable["label"].is_in([0, 1]).all() or usable["label"].has_nulls():
        raise ThroughlineError(f"{where} has labels other than 0 and 1: build the training dataset again.")
    usable = usable.sort("row_key")
    held = _validation_days(usable, seed)
    day = pl.col("prediction_time").dt.date()
    rows = Rows(train=usable.filter(~day.is_in(held)), validation=usable.filter(day.is_in(held)))
    if rows.train["label"].n_unique() < 2:
        raise ThroughlineError(
            f"{where}: all {rows.train.height} training rows have the label {rows.train['label'][0]}: "
            "there is nothing to tell apart; take more days."
        )
    return rows


def _validation_days(rows: pl.DataFrame, seed: int) -> list:
    days = rows["prediction_time"].dt.date().unique().to_list()
    drawn = sorted(days, key=lambda day: hashlib.sha256(f"{seed}/{day}".encode()).digest())
    return drawn[: len(days) // VALIDATION_ONE_DAY_IN]


def shard(rows: int, seed: int, epoch: int, rank: int, world: int, batch: int) -> np.ndarray:
    """The rows this worker takes in this epoch: int64 [steps, batch size], the same shape on every worker.

    A row's place depends on seed, epoch and world size alone. What does not fill a last step is left out of this
    epoch; the next one shuffles anew. Batches shrink when there are fewer rows than one step of all workers takes.
    """
    share = rows // world
    if share == 0:
        raise ThroughlineError(f"{rows} training rows for {world} workers: use fewer workers or more days.")
    batch = min(batch, share)
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    steps = share // batch
    return order[rank::world][: steps * batch].reshape(steps, batch)
