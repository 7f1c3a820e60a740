"""Runs in MLflow: begun before a training, always ended, also when whoever began them is gone.

Owns: a run's life and its standard tags. Does not own: metrics while a training goes on (the trainer sends them),
model versions (`registry/versions.py`). `mlflow` takes seconds to import and is imported on first use.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import psutil

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.mlflow.tags import decode, encode

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_client(uri: str) -> MlflowClient:
    """A client of the tracking server and registry at `uri`. Raises `ThroughlineError` when nobody answers there."""
    _answers(uri)
    # Before the import, which is when it is read: no vendor's telemetry, also where no service set it for us.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    _import_without_feasts_plugin()
    from mlflow import MlflowClient
    from mlflow.environment_variables import (
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
    )

    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.set(True)  # standard output belongs to commands with --json
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _import_without_feasts_plugin() -> None:
    """MLflow asks plug-ins for headers of its requests, and loads them when that is first imported.

    Feast's imports all of Feast, torch and Spark, 13 s of a core in each process, for requests that Feast itself makes.
    """
    from mlflow.utils import plugins

    found = plugins.get_entry_points

    def without_feast(group: str) -> list[EntryPoint]:
        return [plugin for plugin in found(group) if plugin.dist is None or plugin.dist.name != "feast"]

    plugins.get_entry_points = without_feast  # ty: ignore[invalid-assignment]  # replaced for the time of one import
    try:
        importlib.import_module("mlflow.tracking.request_header.registry")
    finally:
        plugins.get_entry_points = found


def client_of(settings: Settings) -> MlflowClient:
    """A client of this home's MLflow."""
    return open_client(settings.url("mlflow"))


@contextmanager
def tracked_run(
    client: MlflowClient,
    experiment: str,
    tags: Mapping[str, Any],
    parameters: Mapping[str, Any],
    resume: str | None = None,
) -> Generator[str]:
    """A run for the time of the block: FINISHED after it, FAILED (with the reason as a tag) when it raises.

    `resume`: the run to go on with instead of a new one. First, runs of this experiment whose process is gone from
    this machine are marked FAILED.
    """
    from mlflow.entities import Param

    experiment_id = _experiment(client, experiment)
    close_abandoned(client, experiment_id)
    if resume is None:
        run_id = client.create_run(experiment_id, tags=encode({**tags, "owner": _me()})).info.run_id
    else:
        run_id = resume
        set_tags(client, run_id, owner=_me())
        client.update_run(run_id, status="RUNNING")
    try:
        if resume is None:
            client.log_batch(run_id, params=[Param(name, str(value)) for name, value in sorted(parameters.items())])
        yield run_id
    except BaseException as error:  # also an interrupt: the run must not stand as RUNNING for ever
        set_tags(client, run_id, error=str(error) or type(error).__name__)
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def set_tags(client: MlflowClient, run_id: str, **tags: Any) -> None:
    for key, text in encode(tags).items():
        client.set_tag(run_id, key, text)


def close_abandoned(client: MlflowClient, experiment_id: str) -> list[str]:
    """Mark runs as FAILED whose process has ended without a word. Returns their ids."""
    closed = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        owner = decode(run.data.tags).get("owner", "")
        if owner and not _alive(owner):
            set_tags(client, run.info.run_id, error="its process ended without a word")
            client.set_terminated(run.info.run_id, "FAILED")
            closed.append(run.info.run_id)
    return closed


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage != "active":
            raise ThroughlineError(
                f"MLflow experiment {name} was deleted: restore it with `mlflow experiments restore`."
            )
        return found.experiment_id
    try:
        return client.create_experiment(name)
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id  # another process was faster


def _me() -> str:
    process = psutil.Process(os.getpid())
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.0f}"


def _alive(owner: str) -> bool:
    """Whether the process that began a run lives; of another machine's we know nothing and say yes."""
    host, pid, created = owner.rsplit("/", 2)
    if host != socket.gethostname():
        return True
    try:
        # The start time tells a process from a later one with the same number; clocks round, so two seconds are equal.
        return abs(psutil.Process(int(pid)).create_time() - float(created)) <= 2
    except psutil.NoSuchProcess:
        return False


def _answers(uri: str) -> None:
    """Ask once: MLflow's own client would retry an absent server for minutes."""
    if not uri.startswith("http"):
        return
    import httpx

    try:
        httpx.get(f"{uri}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise ThroughlineError(f"MLflow does not answer at {uri} ({error}): start it with `throughline up`.") from error
