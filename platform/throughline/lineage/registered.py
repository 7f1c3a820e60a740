"""What MLflow holds about a model version and its run, fetched over REST and kept in memory.

Owns: the three answers that a trace needs per model version, which do not change. Does not own: how a version is
registered (`registry/versions.py`).
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.mlflow import artifacts
from throughline.mlflow.rest import get, tags_in, unreachable
from throughline.mlflow.tags import decode
from throughline.records import DatasetRecord, Record

_DATASET = "training/dataset.json"  # as `experiment/train.py` leaves it with every run


class RegisteredVersion(Record):
    """A model version; `tags` as `mlflow/tags.py` decodes them."""

    run_id: str
    registered_at: datetime | None
    tags: dict[str, Any]


class TrackedRun(Record):
    """The run that trained it; `tags` as `mlflow/tags.py` decodes them."""

    run_id: str
    status: str
    started_at: datetime | None
    ended_at: datetime | None
    tags: dict[str, Any]


class MlflowRegistry:
    """This home's MLflow server. Every method raises one line for what MLflow does not have, or when it is down."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._versions: dict[ModelReference, RegisteredVersion] = {}
        self._runs: dict[str, TrackedRun] = {}
        self._datasets: dict[str, DatasetRecord] = {}

    def version(self, model: ModelReference) -> RegisteredVersion:
        if model not in self._versions:
            found = self._fetch("model-versions/get", "model_version", name=model.name, version=str(model.version))
            self._versions[model] = RegisteredVersion(
                run_id=found.get("run_id", ""),
                registered_at=_instant(found.get("creation_timestamp")),
                tags=decode(tags_in(found)),
            )
        return self._versions[model]

    def run(self, run_id: str) -> TrackedRun:
        if run_id not in self._runs:
            found = self._fetch("runs/get", "run", run_id=run_id)
            info = found["info"]
            run = TrackedRun(
                run_id=run_id,
                status=info["status"],
                started_at=_instant(info.get("start_time")),
                ended_at=_instant(info.get("end_time")),
                tags=decode(tags_in(found.get("data", {}))),
            )
            if run.ended_at is None:  # it may still change
                return run
            self._runs[run_id] = run
        return self._runs[run_id]

    def dataset(self, run_id: str) -> DatasetRecord:
        """The dataset that the run was given, as kept with it."""
        if run_id not in self._datasets:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    file = artifacts.fetch_of_run(self._settings, run_id, _DATASET, Path(folder) / "dataset.json")
                    self._datasets[run_id] = DatasetRecord.model_validate_json(file.read_bytes())
            except (ThroughlineError, ValidationError) as error:
                reason = str(error).splitlines()[0].rstrip(".")
                raise ThroughlineError(
                    f"Run {run_id} has no readable {_DATASET} ({reason}): it was registered before that was kept, or "
                    "its files are gone."
                ) from error
        return self._datasets[run_id]

    def _fetch(self, path: str, kind: str, **parameters: str) -> Any:
        answer = get(self._settings, path, **parameters)
        if answer is None:
            missing = f"{kind} {'/'.join(parameters.values())}"
            raise ThroughlineError(f"MLflow at {self._settings.url('mlflow')} has no {missing}.")
        if kind not in answer:
            raise unreachable(self._settings, f"no {kind} in its answer")
        return answer[kind]


def _instant(milliseconds: Any) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
