"""Reported outcomes whose prediction is not in the log: they wait for it, and expire.

Owns: which of them wait, and the counts of a home. Does not own: their intake (`feedback.py`), joining them with
predictions (`monitoring/outcomes.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl

from throughline.events import feedback, schema
from throughline.foundation.clock import Clock
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, scan
from throughline.usecase import UseCase

_SHARE = 20  # counting again waits 20 times as long as it took last: it costs at most 5 % of a core


@dataclass(frozen=True)
class Unmatched:
    """Reports without their prediction: those that wait for it, and those that waited as long as is declared."""

    waiting: int = 0
    expired: int = 0


def unmatched(reports: pl.LazyFrame, logged: pl.LazyFrame | None, as_of: datetime, wait: timedelta) -> Unmatched:
    """Of the reports known at `as_of` (UTC, data clock); `logged`: the inference log, None before the first event."""
    rows = reports.filter(pl.col("available_at") <= as_of)
    if logged is not None:
        rows = rows.join(logged.select("id"), left_on="prediction_id", right_on="id", how="anti")
    old = pl.col("available_at") + wait < as_of
    waiting, expired = rows.select((~old).sum().alias("waiting"), old.sum().alias("expired")).collect().row(0)
    return Unmatched(waiting, expired)


class UnmatchedReports:
    """The counts of the use cases of a home, as the collector shows them; not thread-safe."""

    def __init__(self, settings: Settings, usecases: Mapping[str, UseCase], clocks: Mapping[str, Clock]) -> None:
        self._settings, self._usecases, self._clocks = settings, usecases, clocks
        self._counted: dict[str, Unmatched] = {}
        self._again_at = 0.0

    def count(self) -> Unmatched:
        """Over all use cases; as of the last count, where counting took long and that was a moment ago."""
        began = time.monotonic()
        if began >= self._again_at:
            self._counted = {name: self._of(usecase) for name, usecase in self._usecases.items()}
            self._again_at = time.monotonic() + _SHARE * (time.monotonic() - began)
        each = self._counted.values()
        return Unmatched(sum(one.waiting for one in each), sum(one.expired for one in each))

    def _of(self, usecase: UseCase) -> Unmatched:
        reports = self._rows(usecase.name, feedback.TABLE)
        if reports is None:
            return Unmatched()
        now = self._clocks[usecase.name].now()
        return unmatched(reports, self._rows(usecase.name, schema.TABLE), now, usecase.label.feedback_wait)

    def _rows(self, usecase: str, table: str) -> pl.LazyFrame | None:
        location = self._settings.table_path(usecase, schema.LAYER, table)
        version = current_version(location)
        return None if version is None else scan(location, version)
