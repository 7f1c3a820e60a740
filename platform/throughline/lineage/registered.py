"""What MLflow holds about a model version and its run, fetched over REST and kept in memory.

Owns: these questions. Does not own: how a version is registered (`registry/versions.py`). A trace needs three answers
per model version, which do not change.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts
from throughline.mlflow.rest import get, unreachable
from throughline.mlflow.tags import decode
from throughline.records import DatasetRecord, Record

_DATASET = "training/dataset.json"  # as `experiment/train.py` leaves it with every run


class Registered(Record):
    """A model version as registered. `said`: what it was described by, names without `throughline.`, values decoded."""

    model: ModelReference
    run_id: str
    registered_at: datetime
    said: dict[str, Any]


class TrackedRun(Record):
    """The run that trained it; `artifacts` is where it left its files."""

    run_id: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    artifacts: str
    said: dict[str, Any]


class Registry(Protocol):
    """What a trace asks of the registry. Each raises one line when it cannot be had."""

    def version(self, model: ModelReference) -> Registered: ...

    def run(self, run_id: str) -> TrackedRun: ...

    def dataset(self, run: TrackedRun) -> DatasetRecord: ...


class MlflowRegistry:
    """This home's MLflow server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._versions: dict[ModelReference, Registered] = {}
        self._runs: dict[str, TrackedRun] = {}
        self._datasets: dict[str, DatasetRecord] = {}

    def version(self, model: ModelReference) -> Registered:
        if model not in self._versions:
            named = {"name": model.name, "version": str(model.version)}
            found = self._ask("model-versions/get", named, "model_version")
            self._versions[model] = Registered(
                model=model,
                run_id=found.get("run_id", ""),
                registered_at=_instant(found["creation_timestamp"]),
                said=_said(found.get("tags", [])),
            )
        return self._versions[model]

    def run(self, run_id: str) -> TrackedRun:
        if run_id not in self._runs:
            found = self._ask("runs/get", {"run_id": run_id}, "run")
            info = found["info"]
            times = {name: _instant(info[name]) for name in ("start_time", "end_time") if info.get(name) is not None}
            run = TrackedRun(
                run_id=run_id,
                status=info["status"],
                started_at=times.get("start_time"),
                ended_at=times.get("end_time"),
                artifacts=info["artifact_uri"],
                said=_said(found.get("data", {}).get("tags", [])),
            )
            if run.ended_at is None:  # it may still change
                return run
            self._runs[run_id] = run
        return self._runs[run_id]

    def dataset(self, run: TrackedRun) -> DatasetRecord:
        """The dataset that the run was given, as kept with it."""
        if run.run_id not in self._datasets:
            self._datasets[run.run_id] = self._dataset(run)
        return self._datasets[run.run_id]

    def _dataset(self, run: TrackedRun) -> DatasetRecord:
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = artifacts.fetch(self._settings, f"{run.artifacts}/{_DATASET}", Path(folder) / "dataset.json")
                return DatasetRecord.model_validate_json(file.read_bytes())
        except (ThroughlineError, ValidationError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ThroughlineError(
                f"Run {run.run_id} has no readable {_DATASET} ({reason}): it was registered "
                "before that was kept, or its files are gone."
            ) from error

    def _ask(self, question: str, parameters: dict[str, str], answer: str) -> Any:
        told = get(self._settings, question, **parameters)
        if told is None:
            what = f"{answer} {'/'.join(parameters.values())}"
            raise ThroughlineError(f"MLflow at {self._settings.url('mlflow')} knows no {what}.")
        if answer not in told:
            raise unreachable(self._settings, f"no {answer} in its answer")
        return told[answer]


def _said(tags: list[dict[str, str]]) -> dict[str, Any]:
    return decode({tag["key"]: tag["value"] for tag in tags})


def _instant(milliseconds: Any) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
