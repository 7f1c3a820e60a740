"""One prediction as a typed record: what the inference log holds.

Owns: names and types of the logged fields; table schema and readers follow from `InferenceEvent`.
Does not own: its CloudEvents form (`wire.py`), sending, storing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin
from uuid import UUID

import orjson
import polars as pl
from pydantic import AfterValidator, AwareDatetime, Field, FiniteFloat

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.records import Record

LAYER, TABLE = "monitoring", "inference_log"
PRODUCTION = "production"

_SUBJECT = "[a-z][a-z0-9_]*"
_INT64 = range(-(2**63), 2**63)
_INSTANT = "%Y-%m-%dT%H:%M:%S%.fZ"  # as orjson writes them
_DIMENSIONS = 4  # of a tensor in a request


class BadEvent(ThroughlineError):
    """An event that cannot be accepted, now or later: sending it again does not help."""

    def __init__(self, message: str, event_id: str | None = None) -> None:
        super().__init__(message)
        self.event_id = event_id


def _utc(instant: datetime) -> datetime:
    if not 1900 <= instant.year < 2200:
        raise ValueError("lies outside the years 1900 to 2199")
    return instant.astimezone(UTC)


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    return _checked(values, 0)


def _scalars_and_tensors(values: dict[str, Any]) -> dict[str, Any]:
    return _checked(values, _DIMENSIONS)


def _checked(values: dict[str, Any], lists: int) -> dict[str, Any]:
    """Refuses what JSON or a reader of the log cannot hold: all but texts, finite numbers, true, false, null, and
    lists of these, at most `lists` within each other."""
    for name, value in values.items():
        if type(value) is float and -math.inf < value < math.inf:  # most of them
            continue
        if problem := _problem(value, lists):
            raise ValueError(f"{ascii(name)[1:-1][:80]} {problem}")
    return values


def _problem(value: Any, lists: int) -> str | None:
    kind = type(value)
    if kind is float:
        return None if math.isfinite(value) else "is not finite"
    if kind is str or kind is bool or value is None:
        return None
    if kind is int:
        return None if value in _INT64 else "is an integer beyond 64 bits"
    if kind is list and lists:
        return next((problem for each in value if (problem := _problem(each, lists - 1))), None)
    return f"is of the type {kind.__name__}, which is not logged"


Instant = Annotated[AwareDatetime, AfterValidator(_utc)]
Traffic = Literal["production", "load_test", "shadow", "test"]


class InferenceEvent(Record):
    """A prediction, and by its fields a row of the inference log; whatever is one, and was read from JSON, can be
    written to the table.

    `time` is the data clock's, `wall_time` the wall clock's, both in UTC; `sequence` counts from 1 per `source`;
    `traffic` is the class of the request; `model_sha256` the digest of the file that made the prediction.
    """

    id: UUID
    subject: str = Field(pattern=rf"^{_SUBJECT}$", description="The use case; each has a table of its own.")
    time: Instant
    wall_time: Instant
    source: str = Field(min_length=1, max_length=200)
    sequence: int = Field(ge=1, lt=2**63)
    model_name: str
    model_version: int = Field(ge=0, lt=2**63)
    revision: str
    role: Literal["stable", "canary", "shadow"]
    row_key: str
    request: Annotated[dict[str, Any], AfterValidator(_scalars_and_tensors)]
    features: Annotated[dict[str, Any], AfterValidator(_scalars)]
    feature_times: dict[str, Instant | None]
    flags: list[str]
    score: float = Field(ge=0, le=1, allow_inf_nan=False)
    decision: str
    latency_ms: FiniteFloat = Field(ge=0)
    traffic: Traffic = PRODUCTION
    model_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


_COLUMN_TYPES: dict[Any, Any] = {
    UUID: pl.String,
    str: pl.String,
    Literal: pl.String,
    dict: pl.String,
    list: pl.List(pl.String),
    AwareDatetime: pl.Datetime("us", "UTC"),
    int: pl.Int64,
    float: pl.Float64,
}


def _kind(annotation: Any) -> Any:
    """The type behind what checks it or allows null."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is UnionType:
        return _kind(get_args(annotation)[0])
    return get_origin(annotation) or annotation


# A column per field, and the partition `day`: the UTC date of `time`. Mappings are JSON text, as their keys differ
# between use cases and versions.
_KINDS = {name: _kind(field.annotation) for name, field in InferenceEvent.model_fields.items() if name != "subject"}
_DEFAULTS = {name: field.default for name, field in InferenceEvent.model_fields.items() if not field.is_required()}
JSON_COLUMNS = [name for name, kind in _KINDS.items() if kind is dict]
LOG_SCHEMA: dict[str, Any] = {name: _COLUMN_TYPES[kind] for name, kind in _KINDS.items()} | {"day": pl.Date}


def log_table(usecase: str, version: int) -> TableReference:
    """The inference log of a use case at a version."""
    return TableReference(f"{usecase}/{LAYER}/{TABLE}", version)


def to_line(event: InferenceEvent) -> bytes:
    """The event as a line of the collector's journal: its row and `subject`; mappings are texts, as in the table."""
    row = {name: getattr(event, name) for name in InferenceEvent.model_fields}
    for name in JSON_COLUMNS:
        row[name] = orjson.dumps(row[name], option=orjson.OPT_UTC_Z).decode()
    return orjson.dumps(row, option=orjson.OPT_UTC_Z)


def parse_line(line: bytes) -> tuple[str, dict[str, Any]]:
    """Subject and row of `to_line`; columns that are newer than the line get their default. Raises `ValueError`."""
    row = orjson.loads(line)
    if not isinstance(row, dict) or not isinstance(subject := row.pop("subject", None), str):
        raise ValueError("not the line of an event")
    if not re.fullmatch(_SUBJECT, subject):
        raise ValueError("the subject is no use case")
    row = {**_DEFAULTS, **row}
    if odd := row.keys() ^ _KINDS.keys():
        raise ValueError(f"written by another version: {', '.join(sorted(odd))[:100]} unknown or missing")
    return subject, row


def to_rows(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows of the table from those of `parse_line`, in order. Raises when one of them is none."""
    instants = [name for name, kind in _KINDS.items() if kind is AwareDatetime]
    schema = {name: pl.String if name in instants else LOG_SCHEMA[name] for name in _KINDS}
    frame = pl.DataFrame({name: [row[name] for row in rows] for name in _KINDS}, schema=schema, strict=True)
    frame = frame.with_columns(pl.col(instants).str.to_datetime(_INSTANT, time_unit="us").dt.replace_time_zone("UTC"))
    return frame.with_columns(day=pl.col("time").dt.date())


def production(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The predictions that are judged, counted and learned from; in a log written before there were classes, all."""
    if "traffic" not in rows.collect_schema():
        return rows
    return rows.filter(of_production())


def of_production() -> pl.Expr:
    """Whether a row of the log is one of production traffic; null is from before there were classes."""
    return pl.col("traffic").fill_null(PRODUCTION) == PRODUCTION


def iso(instant: datetime | None) -> str | None:
    """UTC with `Z`, as all instants inside the JSON columns are written."""
    return None if instant is None else instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
