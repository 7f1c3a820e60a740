"""Outcomes that are reported for predictions, and their table `USECASE/monitoring/feedback`.

Owns: what a report is, its identity, the columns. Does not own: their intake (`feedback_intake.py`), which of them wait
for their prediction (`waiting.py`), what counts as the outcome of a prediction (`monitoring/outcomes.py`).

A report is `{"prediction_id", "value", "time", "source"}`; without `time` the outcome is one of now, on the data clock.
Reports of one prediction, source and time are the same one: the first is kept. A correction has a later time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

import orjson
import polars as pl
from pydantic import BeforeValidator, Field

from throughline.events.schema import Instant
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.lakehouse.table import DAY, INSTANT
from throughline.records import Record

LAYER, TABLE = "monitoring", "feedback"

# `id` is that of the ingestion; `event_time` when the outcome was seen and `available_at` when it was received are on
# the data clock, `received_at` on the wall clock; `day` is the UTC date of `available_at`.
SCHEMA: dict[str, Any] = {
    "id": pl.String, "prediction_id": pl.String, "source": pl.String, "label": pl.Int8, "event_time": INSTANT,
    "available_at": INSTANT, "received_at": INSTANT, DAY: pl.Date,
}  # fmt: skip
_REPORTS = UUID("6bb1f4f4-3c0e-5f0a-8f0e-5a3c1e0b7a11")  # the namespace of the ids


def feedback_table(usecase: str, version: int) -> TableReference:
    """The reported outcomes of a use case at a version."""
    return TableReference(f"{usecase}/{LAYER}/{TABLE}", version)


class BadReport(ThroughlineError):
    """A report that is refused; sending it again does not help."""


def _label(value: object) -> object:
    """As the label has it: 0 or 1. JSON's true is not its 1.0."""
    if value is True or value is False or (type(value) is int and value in (0, 1)):
        return int(value)
    raise ValueError("must be 0, 1, true or false")


class Report(Record):
    """An outcome as its caller sends it."""

    prediction_id: UUID
    value: Annotated[Literal[0, 1], BeforeValidator(_label)]
    time: Instant | None = None
    source: str = Field("api", min_length=1, max_length=200, description="Who saw the outcome.")

    def id_at(self, time: datetime) -> str:
        """The same for the same prediction, source and time (UTC)."""
        return str(uuid5(_REPORTS, orjson.dumps([str(self.prediction_id), self.source, time]).decode()))
