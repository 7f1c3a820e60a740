"""A home with one complete thread, small enough to recompute by hand: departures, ticks of aircraft, predictions.

Departures are known on the minute that they happen. An aircraft ticks each hour; `aircraft_departures_168h` and
`aircraft_delay_168h` count and average its departures of the last week that were known before the tick.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import polars as pl
from deltalake import CommitProperties, write_deltalake

from tests.support.events import rows
from throughline.events.schema import InferenceEvent
from throughline.events.table import LogTable
from throughline.featurestore.incremental import Origin
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference, TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, replace_all, replace_days
from throughline.lineage.registered import RegisteredVersion, TrackedRun
from throughline.records import (
    DatasetRecord,
    FeatureRecord,
    FeatureStoreRecord,
    FeatureViewRecord,
    GateDecision,
    RuleVerdict,
)
from throughline.records.store import save_record
from throughline.registry import history

NAME = "flight_delay"
FIRST, LAST = date(2013, 3, 20), date(2013, 3, 31)
NOW = datetime(2013, 3, 31, 20, tzinfo=UTC)
HOUR, WEEK = timedelta(hours=1), timedelta(hours=168)
AIRCRAFT = [f"N{number}AA" for number in range(100, 105)]
SHA = "ab" * 32
DIGEST = "cd" * 32
COMMIT = "0" * 39 + "1"
RUN = "11" * 16


class FakeRegistry:
    """In place of `MlflowRegistry`: one version, its run and its dataset; `down`: the error that all calls raise."""

    def __init__(self, dataset: DatasetRecord, down: str | None = None) -> None:
        self._dataset, self.down = dataset, down

    def version(self, model: ModelReference) -> RegisteredVersion:
        self._check()
        tags = {"sha256": SHA, "dataset_fingerprint": DIGEST, "commit": COMMIT, "code_fingerprint": "ef" * 32,
                "lock": "12" * 32, "trainer": "logistic", "parameters": {"C": 1.0}}  # fmt: skip
        return RegisteredVersion(run_id=RUN, registered_at=NOW, tags=tags)

    def run(self, run_id: str) -> TrackedRun:
        self._check()
        return TrackedRun(run_id=run_id, status="FINISHED", started_at=NOW, ended_at=NOW, tags={})

    def dataset(self, run_id: str) -> DatasetRecord:
        self._check()
        return self._dataset

    def _check(self) -> None:
        if self.down:
            raise ThroughlineError(self.down)


def departures() -> pl.DataFrame:
    """Each aircraft leaves every five hours; the first at whole hours, where a tick is."""
    rows = []
    for place, aircraft in enumerate(AIRCRAFT):
        at = datetime(2013, 3, 20, 6, tzinfo=UTC) + timedelta(minutes=7 * place)
        number = 0
        while at < NOW:
            rows.append(
                {
                    "flight_id": f"{at:%Y-%m-%dT%H%M}-{aircraft}",
                    "tailnum": aircraft,
                    "dep_delay": float(number % 11 - 3),
                    "event_time": at,
                    "available_at": at,
                    "ingestion_run_id": "run-1",
                }
            )
            at, number = at + 5 * HOUR, number + 1
    known = pl.col("available_at").dt.convert_time_zone("America/New_York").dt.date()
    return pl.DataFrame(rows).with_columns(known.clip(lower_bound=FIRST).alias("day"))


def ticks(raw: pl.DataFrame) -> pl.DataFrame:
    """The aircraft's table, an hour and aircraft at a time, as SQL would have it."""
    rows = []
    hours = int((NOW - datetime(2013, 3, 28, tzinfo=UTC)) / HOUR)
    for hour in range(hours + 1):
        at = datetime(2013, 3, 28, tzinfo=UTC) + hour * HOUR
        seen = raw.filter(pl.col("available_at").is_between(at - WEEK, at, "left"))
        counted = seen.group_by("tailnum").agg(pl.len().alias("n"), pl.mean("dep_delay").alias("mean"))
        for aircraft, n, mean in counted.iter_rows():
            rows.append(
                {"tailnum": aircraft, "event_timestamp": at, "available_at": at, "ingestion_run_id": "build-1",
                 "aircraft_departures_168h": float(n), "aircraft_delay_168h": mean, "aircraft_seats": 100.0}
            )  # fmt: skip
    known = (pl.col("event_timestamp") - pl.duration(microseconds=1)).dt.convert_time_zone("America/New_York").dt.date()
    return pl.DataFrame(rows).with_columns(known.alias("day"))


def write_ticks(settings: Settings, rows: pl.DataFrame, pins: dict[str, int]) -> TableReference:
    """With the origin that dbt's builds leave in the commit."""
    path = settings.table_path(NAME, "features", "aircraft_ticks")
    note = Origin(pins=pins, as_of=NOW, code="code", first=FIRST).model_dump_json()
    write_deltalake(
        str(path), rows.to_arrow(), mode="overwrite", partition_by=["day"],
        commit_properties=CommitProperties(custom_metadata={"userMetadata": note}),
    )  # fmt: skip
    return TableReference(f"{NAME}/features/aircraft_ticks", current_version(path))


def view(pinned: TableReference) -> FeatureViewRecord:
    def feature(name: str, *upstream: str) -> FeatureRecord:
        return FeatureRecord(
            name=name, type="Float64", description="", tags={}, services=["v1"], upstream=sorted(upstream)
        )

    key, known = "flight_departures.tailnum", "flight_departures.available_at"
    return FeatureViewRecord(
        name="aircraft_ticks",
        description="",
        owner="ops",
        tags={},
        entities=["aircraft"],
        table=pinned,
        features=[
            feature("aircraft_departures_168h", key, known),
            feature("aircraft_delay_168h", key, known, "flight_departures.dep_delay"),
            feature("aircraft_seats", "planes.seats"),
        ],
        seen_within=WEEK,
    )


def store(settings: Settings, pinned: TableReference) -> None:
    record = FeatureStoreRecord(usecase=NAME, as_of=NOW, sources=[pinned], spine=pinned, views=[view(pinned)])
    save_record(settings, (NAME, "features", "feature_store"), record)


def request(aircraft: str | None) -> dict[str, Any]:
    return {
        "origin": "JFK", "carrier": "B6", "dest": "BOS", "tailnum": aircraft, "flight": 1018,
        "scheduled_departure": "2013-03-31T21:00:00Z", "scheduled_arrival": "2013-03-31T22:10:00Z",
    }  # fmt: skip


def prediction(
    row: dict[str, Any], number: int, wall_time: datetime, source: str = "server-1", **more: Any
) -> InferenceEvent:
    """As the model server would log it for a row of ticks; `more` over it."""
    features = {name: row[name] for name in ("aircraft_departures_168h", "aircraft_delay_168h", "aircraft_seats")}
    given = {
        "id": uuid5(UUID(int=0), f"{source}/{number}"),
        "source": source,
        "subject": NAME,
        "sequence": number,
        "time": row["event_timestamp"] + timedelta(minutes=number % 60),
        "wall_time": wall_time,
        "model_name": NAME,
        "model_version": 1,
        "revision": f"v1-{SHA[:12]}",
        "role": "stable",
        "row_key": "x",
        "request": request(row["tailnum"]),
        "features": {**features, "departure_hour": 17.0, "origin": "JFK"},
        "feature_times": {"aircraft_ticks": row["event_timestamp"]},
        "flags": [],
        "score": 0.25,
        "decision": "late",
        "latency_ms": 1.0,
    }
    return InferenceEvent(**{**given, **more})


def log(settings: Settings, events: Sequence[InferenceEvent]) -> list[str]:
    """Their ids."""
    LogTable(settings, NAME).append(rows(events))
    return [str(event.id) for event in events]


def decision(**changes: Any) -> GateDecision:
    rule = RuleVerdict(rule="auc", verdict="pass", value=0.76, bound="at least 0.72")
    given = {"model": f"{NAME}/1", "sha256": SHA, "decision": "release", "decided_at": NOW, "rules": [rule]}
    return GateDecision(**{**given, **changes})


def make_home(settings: Settings) -> tuple[pl.DataFrame, pl.DataFrame, FakeRegistry]:
    """Raw rows, ticks, dataset, decision; returns departures, ticks and the registry. Nothing is predicted yet."""
    raw = departures()
    replace_days(settings.table_path(NAME, "raw", "flight_departures"), raw, FIRST, LAST)
    planes = pl.DataFrame({"tailnum": AIRCRAFT, "seats": [100] * len(AIRCRAFT)}).with_columns(
        event_time=pl.lit(NOW), available_at=pl.lit(NOW), ingestion_run_id=pl.lit("run-1")
    )
    replace_all(settings.table_path(NAME, "raw", "planes"), planes)
    made = ticks(raw)
    pinned = write_ticks(settings, made, {"flight_departures": 0, "planes": 0})
    store(settings, pinned)
    place = settings.table_path(NAME, "training", "dataset")
    record = DatasetRecord(
        usecase=NAME, table=TableReference(f"{NAME}/training/dataset", 0), path=str(place),
        fingerprint=DIGEST, as_of=NOW, rows=1, numeric=["aircraft_delay_168h"], categorical=["origin"],
        inputs=[pinned], holdout_from=NOW,
    )  # fmt: skip
    replace_all(place, pl.DataFrame({"aircraft_delay_168h": [1.0]}), {"kept": json.dumps({})}, inputs=[pinned])
    history.append(settings, NAME, history.event_of("decided", f"{NAME}/1", "graph", new=decision().model_dump_json()))
    history.append(settings, NAME, history.event_of("champion", NAME, "graph", new=f"{NAME}/1", reason="released"))
    return raw, made, FakeRegistry(record)
