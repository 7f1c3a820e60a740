"""Removal of old model versions and their files; pinned versions and the newest ones stay.

Owns: which versions may be removed, and their removal from MLflow. A version's run stays, with metrics and card, and so
does its history. Does not own: when it runs (`assets/maintenance.py`), tables (`lakehouse/maintenance.py`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from throughline.events.schema import LAYER, TABLE
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, scan
from throughline.mlflow.tags import decode
from throughline.mlflow.tracking import client_of
from throughline.records.store import recorded_values
from throughline.registry import history
from throughline.registry.champions import line_of
from throughline.rollout.revision import read_revisions

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLLBACKS = 3  # this many earlier champions stay, for as many rollbacks in a row


def removable(
    versions: Iterable[int], aliases: Mapping[str, int], pinned: Collection[int], keep_last: int
) -> list[int]:
    """The versions that may be removed, oldest first: not among the newest `keep_last`, without alias, not pinned."""
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}: the newest version always stays")
    kept = {*aliases.values(), *pinned}
    return [version for version in sorted(set(versions))[:-keep_last] if version not in kept]


def pins(settings: Settings, name: str, now: datetime) -> dict[int, str]:
    """Version -> why it must stay, beside aliases. Wall clock. Raises where that cannot be read."""
    found: dict[int, list[str]] = defaultdict(list)
    served = read_revisions(settings.serving_home / name)
    for revision in served.revisions if served else ():
        found[revision.version].append(f"served as {revision.revision}")
    for version in _recorded(settings, name):
        found[version].append("named by a record")
    for version in _champions(settings, name):
        found[version].append("champion, or what a rollback returns to")
    for version in _predicting(settings, name, now - timedelta(days=settings.retention_days)):
        found[version].append(f"predicted in the last {settings.retention_days} days")
    return {version: ", ".join(dict.fromkeys(reasons)) for version, reasons in found.items()}


def apply(settings: Settings, name: str, now: datetime) -> list[str]:
    """Remove the removable versions of a model; a line for each. The next call completes an interrupted removal."""
    client = client_of(settings)
    registered = {
        int(version.version): version
        for version in client.search_model_versions(f"name = '{name}'")
        if "sha256" in decode(version.tags)  # registered by the platform
    }
    if not registered:
        return []
    aliases = {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
    old = removable(registered, aliases, pins(settings, name, now), settings.keep_models)
    return [_remove(client, settings, registered[version]) for version in old]


def _remove(client: MlflowClient, settings: Settings, version: Any) -> str:
    from mlflow.exceptions import MlflowException  # postpones mlflow (6 s)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # postpones mlflow (6 s)

    reference = ModelReference(version.name, int(version.version))
    if client.get_model_version(version.name, version.version).aliases:  # set since the aliases were read
        return f"{reference}: left, it has an alias now"
    try:
        get_artifact_repository(version.source, tracking_uri=settings.url("mlflow")).delete_artifacts()
        if version.model_id:
            _delete_logged_model(client, version.model_id)
    except (MlflowException, OSError) as error:
        raise ThroughlineError(
            f"{reference}: its files under {version.source} cannot be removed ({str(error).splitlines()[0]}); the "
            "version stays until they can."
        ) from error
    reason = f"removed with its files: not among the newest {settings.keep_models}, and nothing pins it"
    # recorded before the last step: after an interruption the removal is repeated, with the same event
    history.append(settings, version.name, history.event_of("note", reference, GRAPH, reason=reason, once="retention"))
    client.delete_model_version(version.name, version.version)
    return f"{reference}: {reason}"


def _delete_logged_model(client: MlflowClient, model_id: str) -> None:
    from mlflow.exceptions import MlflowException  # postpones mlflow (6 s)

    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # removed before an interruption
            raise


def _recorded(settings: Settings, name: str) -> Iterator[int]:
    """Versions that the newest record of an asset names: the endpoint's, a candidate that waits for its approval."""
    reference = re.compile(rf"{re.escape(name)}/(\d+)")
    for value in recorded_values(settings.records / name, "no version is removed"):
        if isinstance(value, dict) and value.get("name") == name and isinstance(value.get("version"), int):
            yield value["version"]
        elif isinstance(value, str) and (named := reference.fullmatch(value)):
            yield int(named[1])


def _champions(settings: Settings, name: str) -> Iterator[int]:
    """The champion, and the earlier ones that the next rollbacks return to."""
    champions = line_of(history.events(settings, name, target=name)).champions
    yield from (reference.version for reference in champions[-1 - ROLLBACKS :])


def _predicting(settings: Settings, name: str, since: datetime) -> list[int]:
    """Versions that the inference log has a prediction of, made at or after `since` (UTC)."""
    path = settings.table_path(name, LAYER, TABLE)
    version = current_version(path)
    if version is None:
        return []
    made = scan(path, version).filter(pl.col("model_name") == name, pl.col("wall_time") >= since)
    return made.select("model_version").unique().collect().to_series().to_list()
