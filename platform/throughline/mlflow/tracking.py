"""Runs in MLflow: created before a training and always terminated, also after the process that created them is gone.

Owns: clients of MLflow, the status and owner of a run. Does not own: metrics during a training (the trainer logs them),
model versions (`registry/versions.py`). `mlflow` takes 6 s to import and is imported on first use.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, Unpack

import httpx
import psutil

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security import calls
from throughline.foundation.settings import Settings
from throughline.mlflow.rest import unreachable
from throughline.mlflow.tags import Tags, decode, encode

if TYPE_CHECKING:
    from mlflow import MlflowClient


def client_of(settings: Settings) -> MlflowClient:
    """A client of this home's MLflow. Raises `ThroughlineError` when the server does not answer."""
    uri = settings.url("mlflow")
    try:
        with calls.client_of(settings, "mlflow", 10) as server:
            server.get("/health").raise_for_status()  # MLflow's client would retry for minutes
    except httpx.HTTPError as error:
        raise unreachable(settings, error) from error
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
    _import_without_feasts_plugin()
    from mlflow import MlflowClient  # postpones mlflow (6 s)
    from mlflow.environment_variables import (
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
    )

    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)  # standard output belongs to commands with --json
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _import_without_feasts_plugin() -> None:
    """Import MLflow's request headers, which loads its plug-ins, without Feast's: that imports Feast, torch and Spark,
    13 s of a core in each process, for requests that Feast itself makes."""
    from mlflow.utils import plugins  # postpones mlflow (6 s)

    found = plugins.get_entry_points

    def without_feast(group: str) -> list[EntryPoint]:
        return [plugin for plugin in found(group) if plugin.dist is None or plugin.dist.name != "feast"]

    plugins.get_entry_points = without_feast  # ty: ignore[invalid-assignment]  # replaced for the time of one import
    try:
        importlib.import_module("mlflow.tracking.request_header.registry")
    finally:
        plugins.get_entry_points = found


@contextmanager
def tracked_run(
    client: MlflowClient,
    experiment: str,
    tags: Mapping[str, Any],
    parameters: Mapping[str, Any],
    resume: str | None = None,
) -> Generator[str]:
    """A run during the block: FINISHED after it, FAILED (with the reason as a tag) when it raises. `resume`: the run to
    continue instead of a new one. First, runs of the experiment whose process has ended are marked FAILED."""
    from mlflow.entities import Param  # postpones mlflow (6 s)

    experiment_id = _experiment(client, experiment)
    close_abandoned(client, experiment_id)
    if resume is None:
        run_id = client.create_run(experiment_id, tags=encode({**tags, "owner": _this_process()})).info.run_id
    else:
        run_id = resume
        set_tags(client, run_id, owner=_this_process())
        client.update_run(run_id, status="RUNNING")
    try:
        if resume is None:
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in sorted(parameters.items())])
        yield run_id
    except BaseException as error:  # also an interrupt: no run stays RUNNING for ever
        set_tags(client, run_id, error=str(error) or type(error).__name__)
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def set_tags(client: MlflowClient, run_id: str, **tags: Unpack[Tags]) -> None:
    for key, text in encode(tags).items():
        client.set_tag(run_id, key, text)


def close_abandoned(client: MlflowClient, experiment_id: str) -> list[str]:
    """Mark RUNNING runs whose process has ended as FAILED. Returns their ids."""
    closed = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        owner = decode(run.data.tags).get("owner", "")
        if owner and not _is_running(owner):
            set_tags(client, run.info.run_id, error="its process ended without terminating the run")
            client.set_terminated(run.info.run_id, "FAILED")
            closed.append(run.info.run_id)
    return closed


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException  # postpones mlflow (6 s)

    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage != "active":
            raise ThroughlineError(f"MLflow experiment {name} was deleted: run `mlflow experiments restore`.")
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id  # another process was faster


def _this_process() -> str:
    process = psutil.Process(os.getpid())
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.0f}"


def _is_running(owner: str) -> bool:
    """Whether the process that created a run is still running; True for processes of another machine."""
    host, pid, created = owner.rsplit("/", 2)
    if host != socket.gethostname():
        return True
    try:
        # a later process may have the same number, but not the same start time; clocks round
        return abs(psutil.Process(int(pid)).create_time() - float(created)) <= 2
    except psutil.NoSuchProcess:
        return False
