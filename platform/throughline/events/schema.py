"""One prediction as a typed record: what the inference log holds.

Owns: names and types of the logged fields; table schema and readers follow from `InferenceEvent`.
Does not own: its CloudEvents form (`wire.py`), sending, storing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal, get_origin
from uuid import UUID

import polars as pl
from pydantic import AwareDatetime, Field

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.records import Record

LAYER, TABLE = "monitoring", "inference_log"

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


class BadEvent(ThroughlineError):
    """An event that cannot be accepted, now or later: sending it again does not help."""

    def __init__(self, message: str, event_id: str | None = None) -> None:
        super().__init__(message)
        self.event_id = event_id


class InferenceEvent(Record):
    """A prediction, and by its fields a row of the inference log. `time` is the data clock's, `wall_time` the wall
    clock's; `sequence` counts from 1 per `source`."""

    id: UUID
    subject: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="The use case; each has a table of its own.")
    time: AwareDatetime
    wall_time: AwareDatetime
    source: str = Field(min_length=1, max_length=200)
    sequence: int = Field(ge=1, lt=2**63)
    model_name: str
    model_version: int
    revision: str
    role: Literal["stable", "canary", "shadow"]
    row_key: str
    request: dict[str, Any]
    features: dict[str, Any]
    feature_times: dict[str, AwareDatetime | None]
    flags: list[str]
    score: float = Field(ge=0, le=1)
    decision: str
    latency_ms: float = Field(ge=0)


# A column per field, and the partition `day`: the UTC date of `time`. Mappings are JSON text, as their keys differ
# between use cases and versions.
_FIELD_TYPES = {
    name: get_origin(field.annotation) or field.annotation
    for name, field in InferenceEvent.model_fields.items()
    if name != "subject"
}
JSON_COLUMNS = [name for name, kind in _FIELD_TYPES.items() if kind is dict]
LOG_SCHEMA: dict[str, Any] = {name: _COLUMN_TYPES[kind] for name, kind in _FIELD_TYPES.items()} | {"day": pl.Date}


def log_table(usecase: str, version: int) -> TableReference:
    """The inference log of a use case at a version."""
    return TableReference(f"{usecase}/{LAYER}/{TABLE}", version)


def to_rows(events: Iterable[InferenceEvent]) -> pl.DataFrame:
    """Rows of the table, in the given order."""
    rows = []
    for event in events:
        mappings = event.model_dump(mode="json", include=set(JSON_COLUMNS))
        texts = {name: json.dumps(value, separators=(",", ":"), ensure_ascii=False) for name, value in mappings.items()}
        plain = event.model_dump(exclude={"id", "subject", *JSON_COLUMNS})
        rows.append({**plain, **texts, "id": str(event.id), "day": event.time.astimezone(UTC).date()})
    return pl.DataFrame(rows, schema=LOG_SCHEMA)


def iso(instant: datetime | None) -> str | None:
    """UTC with `Z`, as all instants inside the JSON columns are written."""
    return None if instant is None else instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
