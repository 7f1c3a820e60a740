"""How long model versions stay: what is pinned stays for ever, the newest stay, the rest goes with its files.

Owns: which versions may go, and their removal from MLflow. Does not own: when (`assets/maintenance.py`), the tables
they were trained on (`lakehouse/maintenance.py`), what is served (`rollout/`).

Removed are the version and its model files. Its run stays, with metrics and card, and the history with why.
"""

from __future__ import annotations

import json
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
from throughline.registry import history
from throughline.registry.champions import line_of
from throughline.rollout.revision import read_revision

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROLLBACKS = 3  # so many, one after the other, find the files of the champion that they return to


def removable(
    versions: Iterable[int], aliases: Mapping[str, int], pinned: Collection[int], keep_last: int
) -> list[int]:
    """The versions that may go, oldest first: not among the newest `keep_last`, with no alias, not pinned."""
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}: the newest version always stays")
    kept = {*aliases.values(), *pinned}
    return [version for version in sorted(set(versions))[:-keep_last] if version not in kept]


def pins(settings: Settings, name: str, now: datetime) -> dict[int, str]:
    """Version -> why it must stay, beside aliases. Wall clock. Raises where that cannot be read: then nothing goes."""
    found: dict[int, list[str]] = defaultdict(list)
    revision = read_revision(settings.serving_home / name)
    if revision is not None:
        found[revision.version].append(f"served as {revision.revision}")
    for version in _recorded(settings, name):
        found[version].append("named by a record")
    for version in _champions(settings, name):
        found[version].append("champion, or what a rollback returns to")
    for version in _predicting(settings, name, now - timedelta(days=settings.retention_days)):
        found[version].append(f"predicted in the last {settings.retention_days} days")
    return {version: ", ".join(dict.fromkeys(reasons)) for version, reasons in found.items()}


def apply(settings: Settings, name: str, now: datetime) -> list[str]:
    """Remove the versions of a model that may go; a line for each. Needs this home's MLflow.

    A removal that is interrupted is finished by the next one.
    """
    from throughline.mlflow.tracking import client_of

    client = client_of(settings)
    registered = {
        int(version.version): version
        for version in client.search_model_versions(f"name = '{name}'")
        if "sha256" in decode(version.tags)  # what others registered is theirs
    }
    if not registered:
        return []
    aliases = {alias: int(version) for alias, version in client.get_registered_model(name).aliases.items()}
    going = removable(registered, aliases, pins(settings, name, now), settings.keep_models)
    return [_remove(client, settings, registered[version]) for version in going]


def _remove(client: MlflowClient, settings: Settings, version: Any) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    reference = ModelReference(version.name, int(version.version))
    if client.get_model_version(version.name, version.version).aliases:  # given since the aliases were read
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
    # Told before the last step: what is interrupted here is found again, and tells the same event.
    history.append(settings, version.name, history.event_of("note", reference, GRAPH, reason=reason, once="retention"))
    client.delete_model_version(version.name, version.version)
    return f"{reference}: {reason}"


def _delete_logged_model(client: MlflowClient, model_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # an interrupted removal came that far
            raise


def _recorded(settings: Settings, name: str) -> Iterator[int]:
    """Versions that the newest record of an asset names: the endpoint's, a candidate that waits for its approval."""
    word = re.compile(rf"{re.escape(name)}/(\d+)")
    for file in sorted((settings.records / name).rglob("*.json")):
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ThroughlineError(
                f"Record {file} cannot be read ({type(error).__name__}), so it is unknown which versions it names: "
                "none is removed. Materialise its asset again, or remove the file."
            ) from error
        for value in _values(content):
            if isinstance(value, dict):
                if value.get("name") == name and isinstance(value.get("version"), int):
                    yield value["version"]
            elif isinstance(value, str) and (named := word.fullmatch(value)):
                yield int(named[1])


def _values(content: Any) -> Iterator[Any]:
    yield content
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _values(part)


def _champions(settings: Settings, name: str) -> Iterator[int]:
    """The champion, and to whom the next rollbacks return."""
    line = line_of(history.events(settings, name, target=name))
    for reference in line.champions[-1 - ROLLBACKS :]:
        yield reference.version


def _predicting(settings: Settings, name: str, since: datetime) -> list[int]:
    """Versions that the inference log has a prediction of, made at or after `since` (UTC)."""
    path = settings.table_path(name, LAYER, TABLE)
    version = current_version(path)
    if version is None:
        return []
    made = scan(path, version).filter((pl.col("model_name") == name) & (pl.col("wall_time") >= since))
    return made.select("model_version").unique().collect().to_series().to_list()
