"""What a use case and its model versions cost: seconds of training, seconds of serving, bytes kept.

Owns: how runs, predictions and bytes are attributed. Does not own: what a run or a prediction is, prices.

Every figure comes from what survives a restart. Training: the durations of MLflow runs, failed ones too; a run that
only waits for its trials is left out. Serving: the latencies in the inference log, where the rows of one request share
one; the server's own counters begin anew with each start. Bytes: files as they are stored, with the table versions that
are kept.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from throughline.events.schema import LAYER, TABLE, production
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.maintenance import stored_bytes, tables
from throughline.lakehouse.table import find_pin, read
from throughline.mlflow.rest import model_versions, runs, tags_in
from throughline.mlflow.tags import decode
from throughline.records import Record
from throughline.usecase import UseCase

_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Training:
    """Seconds of runs by the wall clock, and of the cores that they had (processes times threads)."""

    runs: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0

    def __add__(self, other: Training) -> Training:
        return Training(self.runs + other.runs, self.seconds + other.seconds, self.core_seconds + other.core_seconds)


@dataclass(frozen=True)
class Serving:
    """Requests of all traffic classes and their seconds in the server; predictions (rows), and those of production."""

    requests: int = 0
    seconds: float = 0.0
    predictions: int = 0
    production: int = 0


class VersionCost(Record):
    """One model version. `bytes` is None where the registered folder is not on this machine."""

    model: ModelReference
    trainer: str
    training_s: float
    search_runs: int
    search_s: float
    training_core_s: float
    serving_s: float
    requests: int
    predictions: int
    production_predictions: int
    bytes: int | None


class UseCaseCost(Record):
    """A use case: its versions, newest first, the runs that gave none, and its tables by room of the graph.

    The totals count everything, also predictions of versions that the registry no longer has.
    """

    usecase: str
    versions: list[VersionCost]
    other_runs: int
    other_training_s: float
    other_core_s: float
    training_s: float
    training_core_s: float
    serving_s: float
    predictions: int
    tables: dict[str, int]
    table_bytes: int
    model_bytes: int


def cost_of(settings: Settings, usecase: UseCase) -> UseCaseCost:
    """Reads MLflow, the inference log and the sizes of files. Raises `ThroughlineError` when MLflow is down."""
    registered = {
        version["run_id"]: version for version in model_versions(settings, usecase.name) if version.get("run_id")
    }
    own, searches, others = attribute(runs(settings, usecase.name), set(registered), time.time())
    serving = served(settings, usecase)
    versions = []
    for run_id, version in registered.items():
        reference, tags = ModelReference(usecase.name, int(version["version"])), decode(tags_in(version))
        trained = own.get(run_id, Training())
        searched = searches.pop(tags.get("search", ""), Training())
        answered = serving.get(reference.version, Serving())
        versions.append(
            VersionCost(
                model=reference,
                trainer=tags.get("trainer", ""),
                training_s=trained.seconds,
                search_runs=searched.runs,
                search_s=searched.seconds,
                training_core_s=trained.core_seconds + searched.core_seconds,
                serving_s=answered.seconds,
                requests=answered.requests,
                predictions=answered.predictions,
                production_predictions=answered.production,
                bytes=_folder_bytes(tags.get("uri")),
            )
        )
    versions.sort(key=lambda one: one.model, reverse=True)
    for left in searches.values():  # whose best trial never became a version
        others += left
    rooms = table_bytes(settings, usecase)
    return UseCaseCost(
        usecase=usecase.name,
        versions=versions,
        other_runs=others.runs,
        other_training_s=others.seconds,
        other_core_s=others.core_seconds,
        training_s=others.seconds + sum(one.training_s + one.search_s for one in versions),
        training_core_s=others.core_seconds + sum(one.training_core_s for one in versions),
        serving_s=sum(one.seconds for one in serving.values()),
        predictions=sum(one.predictions for one in serving.values()),
        tables=rooms,
        table_bytes=sum(rooms.values()),
        model_bytes=sum(one.bytes or 0 for one in versions),
    )


def attribute(
    found: Iterable[Mapping[str, Any]], registered: set[str], now: float
) -> tuple[dict[str, Training], dict[str, Training], Training]:
    """Runs as MLflow describes them -> by the run of a version, by the search whose trials they are, and the others.

    now: seconds since the epoch, the end of what still runs. Pure.
    """
    own: dict[str, Training] = {}
    searches: dict[str, Training] = defaultdict(Training)
    others = Training()
    for run in found:
        info, data = run["info"], run.get("data", {})
        parameters = {one["key"]: one["value"] for one in data.get("params", [])}
        if "processes" not in parameters:
            continue  # a search, which waits for its trials
        seconds = max(0.0, (int(info.get("end_time") or now * 1000) - int(info["start_time"])) / 1000)
        cores = int(parameters["processes"]) * int(parameters.get("threads", 1))
        spent = Training(1, seconds, seconds * cores)
        parent = tags_in(data).get(_PARENT)
        if info["run_id"] in registered:
            own[info["run_id"]] = spent
        elif parent:
            searches[parent] += spent
        else:
            others += spent
    return own, dict(searches), others


def served(settings: Settings, usecase: UseCase) -> dict[int, Serving]:
    """By model version, from the inference log as it stands; nothing before the first prediction."""
    table = find_pin(settings, f"{usecase.name}/{LAYER}/{TABLE}")
    if table is None:
        return {}
    log = read(settings, table)
    version = pl.col("model_version")
    # the rows of one request were answered at one instant, after one time
    requests = log.group_by(version, "source", "wall_time", "latency_ms").len("rows")
    totals = requests.group_by(version).agg(
        pl.len().alias("requests"), (pl.col("latency_ms").sum() / 1000).alias("seconds"), pl.col("rows").sum()
    )
    found = {
        row["model_version"]: Serving(row["requests"], row["seconds"], row["rows"])
        for row in totals.collect().to_dicts()
    }
    counted = production(log).group_by(version).len("rows").collect().to_dicts()
    judged = {row["model_version"]: row["rows"] for row in counted}
    return {number: replace(one, production=judged.get(number, 0)) for number, one in found.items()}


def table_bytes(settings: Settings, usecase: UseCase) -> dict[str, int]:
    """Room -> bytes of its tables, all kept versions included."""
    rooms: dict[str, int] = defaultdict(int)
    for table in tables(settings):
        name, room, _ = table.split("/")
        if name == usecase.name:
            rooms[room] += stored_bytes(settings, table)
    return dict(sorted(rooms.items()))


def _folder_bytes(uri: str | None) -> int | None:
    folder = Path(uri) if uri else None
    if folder is None or not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
