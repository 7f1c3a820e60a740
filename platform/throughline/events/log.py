"""An index of the inference log: finds a prediction by its id, counts predictions by hour, revision and model.

Owns: the place of each id, the counts, the number of lost events. Does not own: writing the log (`table.py`).
Any prediction is found; only those of production traffic are counted.
A prediction takes 24 bytes of memory. After an append only new files are read; after a compaction all are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import polars as pl

from throughline.events.schema import JSON_COLUMNS, LAYER, LOG_SCHEMA, PRODUCTION, TABLE, log_table, of_production
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings, in_bucket
from throughline.lakehouse.delta import find, storage_options
from throughline.lakehouse.table import DAY

_MADE_BY = ("model_name", "model_version", "revision", "role")
_HOURS = {"hour": LOG_SCHEMA["time"], **{name: LOG_SCHEMA[name] for name in _MADE_BY}, "predictions": pl.Int64}
_STORED = {name: kind for name, kind in LOG_SCHEMA.items() if name != DAY}
_SOURCES = {"source": LOG_SCHEMA["source"], "events": pl.Int64, "highest": LOG_SCHEMA["sequence"]}


@dataclass(frozen=True)
class Share:
    """How many of the predictions that answered requests in an hour (data clock, UTC) a revision made."""

    hour: datetime
    predictions: int
    of: int

    @property
    def share(self) -> float:
        return self.predictions / self.of


class PredictionLog:
    """The inference log of one use case at the version of the last `refresh`; not thread-safe."""

    def __init__(self, settings: Settings, usecase: str) -> None:
        self._location = settings.table_path(usecase, LAYER, TABLE)
        self.usecase = usecase
        self.version: int | None = None
        self._forget()
        self.refresh()

    def _forget(self) -> None:
        self._files: list[str] = []
        self._ids = np.empty(0, np.uint64)  # hashes, ascending; where each stands: in which file, in which row of it
        self._file, self._row = np.empty(0, np.uint32), np.empty(0, np.uint32)
        self._wall_times = np.empty(0, np.int64)
        self._hours, self._sources = pl.DataFrame(schema=_HOURS), pl.DataFrame(schema=_SOURCES)

    @property
    def table(self) -> TableReference | None:
        """The version that is indexed; None before the first prediction."""
        return None if self.version is None else log_table(self.usecase, self.version)

    @property
    def predictions(self) -> int:
        """Of production traffic, shadow revisions' included."""
        return int(self._hours["predictions"].sum())

    @property
    def lost(self) -> int:
        """Events that never arrived, or are still on their way: gaps in the numbers of their sources."""
        return int((self._sources["highest"] - self._sources["events"]).sum())

    def refresh(self) -> bool:
        """Index what was logged since; whether there was anything."""
        table = find(self._location)
        if table is None or table.version() == self.version:
            return False
        files = table.file_uris()
        if not set(self._files) <= set(files):
            self._forget()
        known = set(self._files)
        self._take([file for file in files if file not in known])
        self.version = table.version()
        return True

    def find(self, prediction_id: str) -> dict[str, Any]:
        """The logged prediction with its JSON columns parsed. Raises one line when it is not there."""
        wanted = _canonical(prediction_id)
        row = self._look_up(wanted)
        if row is None and self.refresh():
            row = self._look_up(wanted)
        if row is None:
            raise ThroughlineError(f"Prediction {wanted} is not logged: {self.described}.")
        return row

    @property
    def described(self) -> str:
        """How much of the log there is, in words."""
        if self.version is None:
            return f"nothing of {self.usecase} was logged yet"
        gaps = f", and it is incomplete: {self.lost:,} events are missing" if self.lost else ""
        return f"{self.table} holds {len(self._ids):,} predictions{gaps}"

    def share(self, revision: str, at: datetime) -> Share:
        """Of the hour of `at` (data clock). Shadow predictions answer no request and do not count."""
        hour = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        answered = self._hours.filter((pl.col("hour") == hour) & (pl.col("role") != "shadow"))
        mine = answered.filter(pl.col("revision") == revision)
        return Share(hour, int(mine["predictions"].sum()), int(answered["predictions"].sum()))

    def per_model(self) -> dict[ModelReference, int]:
        """Model version -> how many predictions it made."""
        counted = self._hours.group_by("model_name", "model_version").agg(pl.sum("predictions")).sort(pl.all())
        return {ModelReference(name, version): count for name, version, count in counted.iter_rows()}

    def made_within(self, spans: Iterable[tuple[datetime, datetime | None]]) -> int:
        """Predictions made within any of the spans [from, until) of the wall clock; None: until now."""
        hit = np.zeros(len(self._wall_times), bool)
        for start, end in spans:
            within = self._wall_times >= _micros(start)
            hit |= within if end is None else within & (self._wall_times < _micros(end))
        return int(hit.sum())

    # The index

    def _take(self, files: list[str]) -> None:
        if not files:
            return
        columns = ("id", "source", "sequence", "time", "wall_time", *_MADE_BY, "file")
        rows = (
            self._scan(files, include_file_paths="file").select(*columns, of_production().alias("production")).collect()
        )
        places = {file: number for number, file in enumerate(files, len(self._files))}
        rows = rows.with_columns(
            place=pl.col("file").replace_strict(places, return_dtype=pl.UInt32),
            row=pl.int_range(pl.len(), dtype=pl.UInt32).over("file"),
            hash=pl.col("id").hash(),
            hour=pl.col("time").dt.truncate("1h"),
        )
        hashes = np.concatenate([self._ids, rows["hash"].to_numpy()])
        order = np.argsort(hashes, kind="stable")
        self._ids = hashes[order]
        self._file = np.concatenate([self._file, rows["place"].to_numpy()])[order]
        self._row = np.concatenate([self._row, rows["row"].to_numpy()])[order]
        counted = rows.filter("production")
        self._wall_times = np.concatenate([self._wall_times, counted["wall_time"].dt.epoch("us").to_numpy()])
        made = counted.with_columns(pl.lit(1, pl.Int64).alias("predictions")).select(*_HOURS)
        self._hours = pl.concat([self._hours, made]).group_by(pl.exclude("predictions")).agg(pl.sum("predictions"))
        arrived = rows.select("source", pl.lit(1, pl.Int64).alias("events"), pl.col("sequence").alias("highest"))
        self._sources = pl.concat([self._sources, arrived]).group_by("source").agg(pl.sum("events"), pl.max("highest"))
        self._files += files

    def _look_up(self, wanted: str) -> dict[str, Any] | None:
        value = pl.Series([wanted]).hash()[0]
        place = int(np.searchsorted(self._ids, np.uint64(value)))
        while place < len(self._ids) and self._ids[place] == value:
            stored = self._scan([self._files[self._file[place]]]).slice(int(self._row[place]), 1).collect()
            if stored["id"][0] == wanted:
                (row,) = stored.to_dicts()
                parsed = {name: json.loads(row[name]) for name in JSON_COLUMNS}
                return {**row, **parsed, "traffic": row["traffic"] or PRODUCTION}
            place += 1
        return None

    def _scan(self, files: list[str], **how: Any) -> pl.LazyFrame:
        if in_bucket(self._location):
            how["storage_options"] = storage_options(self._location)
            how["credential_provider"] = pl.CredentialProviderAWS()
        # files from before a column was added do not have it
        return pl.scan_parquet(files, schema=_STORED, missing_columns="insert", hive_partitioning=False, **how)


def _canonical(prediction_id: str) -> str:
    try:
        return str(UUID(prediction_id))
    except ValueError:
        raise ThroughlineError(f"{prediction_id!r} is no prediction id: give the prediction_id of an answer.") from None


def _micros(instant: datetime) -> int:
    return round(instant.timestamp() * 1e6)
