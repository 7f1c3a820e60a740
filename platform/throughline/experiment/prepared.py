"""Prepared rows: a training dataset as workers read it, arrays mapped into memory.

Owns: the files, how they are written and read. Does not own: which rows are in them (`prepare.py`), the order in which
a worker takes its share (`training/data.py`).

A folder holds `train.arrow` and `validation.arrow` (numbers float32 [K], codes int32 [M], label float32; one record
batch each, so that a column is one array), `sample.arrow` (raw features of some training rows, to check an exported
model on) and `facts.json`. The training rows are shuffled by the seed: each of W equal parts of the file is a random
share, and its worker reads no other part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from throughline.foundation.errors import ThroughlineError
from throughline.models.onnx_graph import Preprocessing, learn_preprocessing, numeric_matrix
from throughline.records import Record

TRAIN, VALIDATION, SAMPLE, FACTS = "train.arrow", "validation.arrow", "sample.arrow", "facts.json"
SAMPLE_ROWS = 2000
TIMES = ("prediction_time", "label_available_at")


class Facts(Record):
    """About prepared rows, in UTC: from the first prediction time trained on to the last prediction or label time of
    any row, validation included."""

    rows: int
    validation_rows: int
    base_rate: float
    trained_from: datetime
    trained_until: datetime
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
        train, validation = (_mapped(folder / name) for name in (TRAIN, VALIDATION))
    except (OSError, ValueError) as error:
        raise ThroughlineError(f"Prepared rows {folder} cannot be read ({error}): start the training again.") from error
    return PreparedRows(facts, train, validation, folder)


def write_prepared(
    folder: Path, train: pl.DataFrame, validation: pl.DataFrame, numeric: list[str], categorical: list[str], seed: int
) -> None:
    """Write rows with `TIMES`, `label` and the features into an existing folder."""
    learned = learn_preprocessing(train, numeric, categorical)
    order = np.random.default_rng(seed).permutation(train.height)
    for name, rows in ((TRAIN, train[order]), (VALIDATION, validation)):
        arrays = {
            "numbers": learned.numbers(numeric_matrix(rows, numeric)),
            "codes": learned.codes(rows).astype(np.int32),
            "label": rows["label"].cast(pl.Float32).to_numpy(),
        }
        _write_arrays(folder / name, arrays)
    sample = train.gather_every(max(1, train.height // SAMPLE_ROWS)).select(*numeric, *categorical)
    # Rebuilt from values: the memory under a null depends on the table's order, and would be written.
    pl.DataFrame(sample.to_dict(as_series=False), schema=sample.schema).write_ipc(folder / SAMPLE)
    times = pl.concat([rows[time] for rows in (train, validation) for time in TIMES]).sort()
    facts = Facts(
        rows=train.height,
        validation_rows=validation.height,
        base_rate=float(train["label"].to_numpy().mean()),
        trained_from=train["prediction_time"].sort()[0],
        trained_until=times[-1],
        preprocessing=learned,
    )
    (folder / FACTS).write_text(facts.model_dump_json())


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """`numbers`, `codes` and `label` as one record batch."""
    batch = pa.record_batch({name: _column(values) for name, values in arrays.items()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def _mapped(path: Path) -> Arrays:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    numbers, codes = _matrix(batch.column("numbers"), np.float32), _matrix(batch.column("codes"), np.int32)
    return Arrays(numbers, codes, _values(batch.column("label"), np.float32))


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    if values.shape[1] == 0:  # Arrow has no lists of width 0
        return pa.nulls(len(values))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _matrix(column: pa.Array, kind: type) -> np.ndarray:
    if pa.types.is_null(column.type):
        return np.empty((len(column), 0), kind)
    return _values(column.values, kind).reshape(len(column), column.type.list_size)


def _values(column: pa.Array, kind: type) -> np.ndarray:
    """Without copying. Not `to_numpy`, which imports pandas (0.3 s of a core in every worker)."""
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * np.dtype(kind).itemsize)
