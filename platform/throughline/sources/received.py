"""The table of pushed rows as they were received, and the source that reads it.

Owns: `USECASE/received/TABLE`, which only the collector writes: the first row of each id, as JSON, so that the declared
columns may change before ingestion. A corrected row has an id of its own and the key of the row it corrects.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import httpx
import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, INSTANT, current_version, scan
from throughline.sources.conform import as_declared, empty
from throughline.sources.source import known_in
from throughline.usecase import UseCase
from throughline.usecase.feeds import PushFeed

LAYER = "received"
TIMEOUT_S = 60

# `received_at` is by the wall clock, the other instants by the data clock; `day` is local.
SCHEMA: dict[str, Any] = {
    "id": pl.String, "row": pl.String, "event_time": INSTANT, "available_at": INSTANT, "received_at": INSTANT,
    DAY: pl.Date,
}  # fmt: skip


class PushSource:
    """Rows that were pushed for a table; first the collector writes what it has confirmed."""

    def __init__(self, settings: Settings, usecase: UseCase, table: str, feed: PushFeed) -> None:
        self.name = f"the rows pushed to /v1/sources/{usecase.name}/{table}"
        self._settings, self._feed = settings, feed
        self._path = f"/v1/sources/{usecase.name}/{table}/flush"
        self._location = settings.table_path(usecase.name, LAYER, table)
        self._expects = usecase.sources.tables[table].expects

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        """Rows in the order of knowledge time, then of their ids."""
        assert self._expects is not None  # a declaration with `push` has it
        version = self._flushed()
        if version is None:
            return empty(self._expects)
        received = scan(self._location, version).filter(known_in(start, end)).sort("available_at", "id").collect()
        if received.is_empty():
            return empty(self._expects)
        rows = pl.read_ndjson("\n".join(received["row"]).encode(), infer_schema_length=None)
        # columns that were declared after these rows came
        later = [name for name in self._expects.columns if name not in rows.columns]
        rows = rows.with_columns(pl.lit(None).alias(name) for name in later)
        return as_declared(rows, self._feed, self._expects, self.name)

    def parts(self) -> dict[str, str]:
        """A part is a day; its stamp is its number of rows."""
        version = current_version(self._location)
        if version is None:
            return {}
        counts = scan(self._location, version).group_by(DAY).len().collect()
        return {day.isoformat(): str(rows) for day, rows in counts.iter_rows()}

    def days(self, part: str) -> set[date]:
        return {date.fromisoformat(part)}

    def _flushed(self) -> int | None:
        try:
            with client_of(self._settings, "collector", TIMEOUT_S) as collector:
                answer = collector.post(self._path)
            return answer.raise_for_status().json()["version"]
        except httpx.HTTPError as error:
            raise ThroughlineError(
                f"The collector did not write {self._location} ({error}): start it with `throughline up`, or restart "
                "it if the table was declared since."
            ) from error
