"""Prepared rows: a training dataset as workers read it, arrays mapped into memory.

Owns: the files, how they are written and read. Does not own: which rows are in them (`prepare.py`), the order in which
a worker takes its share (`training/data.py`).

A folder holds `train.NAME.npy` and `validation.NAME.npy` for each of the arrays `ARRAYS`, `sample.arrow` (raw features
of some training rows, to check an exported model on) and `facts.json`. The training rows are shuffled by the seed: each
of W equal parts of the files is a random share, and its worker reads no other part.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from throughline.experiment.spec import TrainedRows
from throughline.foundation.errors import ThroughlineError
from throughline.models.onnx_graph import Preprocessing, learn_preprocessing, numeric_matrix

TRAIN, VALIDATION, SAMPLE, FACTS = "train", "validation", "sample.arrow", "facts.json"
ARRAYS = ("numbers", "codes", "labels")
SAMPLE_ROWS = 2000
TIMES = ("prediction_time", "label_available_at")


class Facts(TrainedRows):
    """About prepared rows, and what was learned from them."""

    preprocessing: Preprocessing


@dataclass(frozen=True)
class Arrays:
    """Rows as a model's core takes them: numbers float32 [rows, K], codes int32 [rows, M], labels float32 [rows]."""

    numbers: np.ndarray
    codes: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> Arrays:
        """A view for a slice; a copy of just these rows for an array of places."""
        return Arrays(self.numbers[rows], self.codes[rows], self.labels[rows])


@dataclass(frozen=True)
class PreparedRows:
    facts: Facts
    train: Arrays
    validation: Arrays
    folder: Path

    def sample(self) -> pl.DataFrame:
        """Raw features of some training rows, as serving gets them."""
        return pl.read_ipc(self.folder / SAMPLE)


def open_prepared(folder: Path) -> PreparedRows:
    """Map the files; nothing is read before it is used. Raises `ThroughlineError` when they are not there."""
    try:
        facts = Facts.model_validate_json((folder / FACTS).read_text())
        train, validation = (_mapped(folder, part) for part in (TRAIN, VALIDATION))
    except (OSError, ValueError) as error:
        raise ThroughlineError(f"Prepared rows {folder} cannot be read ({error}): start the training again.") from error
    return PreparedRows(facts, train, validation, folder)


def write_prepared(
    folder: Path, train: pl.DataFrame, validation: pl.DataFrame, numeric: list[str], categorical: list[str], seed: int
) -> None:
    """Write rows with `TIMES`, `label` and the features into an existing folder."""
    learned = learn_preprocessing(train, numeric, categorical)
    order = np.random.default_rng(seed).permutation(train.height)
    for part, rows in ((TRAIN, train[order]), (VALIDATION, validation)):
        arrays = Arrays(
            numbers=learned.numbers(numeric_matrix(rows, numeric)),
            codes=learned.codes(rows).astype(np.int32),
            labels=rows["label"].cast(pl.Float32).to_numpy(),
        )
        for name, values in zip(ARRAYS, astuple(arrays), strict=True):
            np.save(folder / f"{part}.{name}.npy", values)
    sample = train.gather_every(max(1, train.height // SAMPLE_ROWS)).select(*numeric, *categorical)
    # Rebuilt from values: the memory under a null depends on the table's order, and would be written.
    pl.DataFrame(sample.to_dict(as_series=False), schema=sample.schema).write_ipc(folder / SAMPLE)
    times = pl.concat([rows[time] for rows in (train, validation) for time in TIMES]).sort()
    facts = Facts(
        rows_trained=train.height,
        rows_validation=validation.height,
        base_rate=float(train["label"].to_numpy().mean()),
        trained_from=train["prediction_time"].sort()[0],
        trained_until=times[-1],
        preprocessing=learned,
    )
    (folder / FACTS).write_text(facts.model_dump_json())


def _mapped(folder: Path, part: str) -> Arrays:
    return Arrays(*(np.asarray(np.load(folder / f"{part}.{name}.npy", mmap_mode="r")) for name in ARRAYS))
