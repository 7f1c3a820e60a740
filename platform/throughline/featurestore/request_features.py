"""Features computed from a request alone, by one function of a use case for one request and for millions of rows.

Owns: how that function gets a request and what it returns. Does not own: the function (`features/<usecase>`).

    derive(fields) -> features

`fields`: request field -> array [rows]: datetime64[us] in UTC for a timestamp (NaT: null), float64 for a number or a
nullable integer (NaN: null), int64 for an integer, objects (text or None) for a string. `features`: name -> float64
[rows], NaN: none. A row's features must depend on that row only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from throughline.foundation.errors import ThroughlineError
from throughline.usecase import UseCase, load_object

if TYPE_CHECKING:
    import polars as pl

Arrays = Mapping[str, np.ndarray]
Derive = Callable[[Arrays], Arrays]


def load_derive(usecase: UseCase) -> Derive:
    """The function that the declaration names."""
    return load_object(usecase.features.request_features)


class RequestFields(Mapping[str, np.ndarray]):
    """Columns of a request (see `throughline.usecase.requests`) as the arrays of `derive`; made when they are read."""

    def __init__(self, usecase: UseCase, columns: Mapping[str, Sequence[Any]]) -> None:
        self._usecase = usecase
        self._columns = columns

    def __getitem__(self, name: str) -> np.ndarray:
        field, values = self._usecase.request[name], self._columns[name]
        if field.type == "string":
            return np.array(values, object)
        if field.nullable:
            values = [_NULLS[field.type] if value is None else value for value in values]
        if field.type == "timestamp":
            return np.array(values, np.int64).view("datetime64[us]")
        return np.array(values, np.int64 if field.type == "integer" and not field.nullable else np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


_NULLS: dict[str, Any] = {"timestamp": np.iinfo(np.int64).min, "integer": np.nan, "number": np.nan}  # the first is NaT


def request_features(derive: Derive, usecase: UseCase, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """Feature -> a value per row of the request. Raises when the function returns something else."""
    return {name: values.tolist() for name, values in _checked(derive, RequestFields(usecase, columns)).items()}


def add_request_features(usecase: UseCase, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows with the declared request fields -> the same rows with a Float64 column per feature (null: none)."""
    import polars as pl  # postpones polars, which answering a request does not need

    fields = {}
    for name, field in usecase.request.items():
        column = rows[name]
        if field.type in ("integer", "number") and (field.type == "number" or field.nullable):
            column = column.cast(pl.Float64)
        fields[name] = column.to_numpy()
    features = _checked(load_derive(usecase), fields)
    return rows.with_columns(pl.Series(name, values).fill_nan(None) for name, values in features.items())


def _checked(derive: Derive, fields: Arrays) -> Arrays:
    features = derive(fields)
    for name, values in features.items():
        if values.dtype != np.float64 or values.ndim != 1:
            raise ThroughlineError(
                f"Request-time feature {name} is {values.dtype} {list(values.shape)}: return float64, one per row."
            )
    return features
