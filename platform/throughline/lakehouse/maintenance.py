"""Keeping the tables of a home small, and every version that something pins.

Owns: which versions are pinned and by whom, compaction of small files, removal of files, log and run folders that
are older than the retention. Does not own: when that happens (`assets/maintenance.py`). Ages are by the wall clock.

Pinned are the versions that a record, the Feast registry or a registered model version names, and the versions from
which those were made. Where a pin cannot be read nothing is removed.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError

from throughline.errors import ThroughlineError
from throughline.lakehouse.delta import Location, storage_options
from throughline.lakehouse.table import INPUTS, absent, current_version, history, open_table
from throughline.records import EndpointRecord, TableVersion
from throughline.settings import Settings, in_bucket
from throughline.usecase import UseCase

LOG_RETENTION = timedelta(days=30)  # of `delta.logRetentionDuration`, unless a table says otherwise

Pins = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Maintained:
    """What was done to one table: files compacted and removed; `skipped` or `failure` say why nothing was."""

    table: str
    kept: list[int]
    compacted: int = 0
    removed: int = 0
    skipped: str | None = None
    failure: str | None = None

    def __str__(self) -> str:
        done = f"{self.compacted} files compacted, {self.removed} removed, pinned versions kept: {len(self.kept)}"
        return f"{self.table}: {self.failure or self.skipped or done}"


# What is pinned


def collect_pins(settings: Settings, usecases: Iterable[UseCase]) -> dict[str, set[int]]:
    """Table -> versions that must stay readable. Needs this home's MLflow. Raises where pins cannot be read."""
    roots: set[TableVersion] = set()
    for usecase in usecases:
        registered = _registered_datasets(settings, usecase)
        _refuse_unknown_endpoint(settings, usecase, registered)
        roots |= {*registered.values(), *_feast_pins(settings, usecase)}
    return with_inputs(settings, {*roots, *recorded_pins(settings)})


def recorded_pins(settings: Settings) -> set[TableVersion]:
    """Every table version that a record of this home names."""
    pins: set[TableVersion] = set()
    for file in sorted(settings.records.rglob("*.json")):
        try:
            pins |= set(_versions_in(json.loads(file.read_text())))
        except (OSError, ValueError) as error:
            raise ThroughlineError(
                f"Record {file} cannot be read ({type(error).__name__}), so it is unknown what it pins: nothing is "
                "vacuumed. Materialise its asset again, or remove the file."
            ) from error
    return pins


def with_inputs(settings: Settings, roots: Iterable[TableVersion]) -> dict[str, set[int]]:
    """The roots, and, as far as the tables' history tells, the versions they were made from."""
    pins: dict[str, set[int]] = defaultdict(set)
    histories: dict[str, list[tuple[int, list[TableVersion]]]] = {}
    following = list(roots)
    while following:
        pinned = following.pop()
        if pinned.version in pins[pinned.table]:
            continue
        pins[pinned.table].add(pinned.version)
        if pinned.table not in histories:
            histories[pinned.table] = _inputs_by_version(settings, pinned.table)
        made_from = (inputs for version, inputs in histories[pinned.table] if version <= pinned.version)
        following += next(made_from, [])
    return dict(pins)


def _inputs_by_version(settings: Settings, table: str) -> list[tuple[int, list[TableVersion]]]:
    """The commits that say what they were made from, newest first."""
    location = settings.lakehouse / table
    if current_version(location) is None:
        return []
    try:
        told = [(commit.version, _inputs(table, commit.notes)) for commit in history(location)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThroughlineError(
            f"A commit of {table} names what it was made from in words unknown here ({error!r}): nothing is vacuumed. "
            "See its history; whoever writes `inputs` or userMetadata there must use this platform's form."
        ) from error
    return [(version, inputs) for version, inputs in told if inputs is not None]


def _inputs(table: str, notes: Mapping[str, Any]) -> list[TableVersion] | None:
    if INPUTS in notes:
        return [_parsed(text) for text in json.loads(notes[INPUTS])]
    if "userMetadata" in notes:  # a feature table's: {"pins": {raw table: version}}
        usecase = table.partition("/")[0]
        pins = json.loads(notes["userMetadata"])["pins"]
        return [TableVersion(table=f"{usecase}/raw/{name}", version=version) for name, version in pins.items()]
    return None


def _versions_in(value: Any) -> Iterator[TableVersion]:
    if isinstance(value, dict):
        if {"table", "version"} <= value.keys():
            yield TableVersion(table=value["table"], version=value["version"])
        for part in value.values():
            yield from _versions_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _versions_in(part)


def _registered_datasets(settings: Settings, usecase: UseCase) -> dict[str, TableVersion]:
    """Model reference -> the dataset that version was trained on."""
    from throughline.registry.models import dataset_tables

    return {reference: _parsed(text) for reference, text in dataset_tables(settings, usecase.name).items()}


def _refuse_unknown_endpoint(settings: Settings, usecase: UseCase, registered: Collection[str]) -> None:
    from throughline import recordstore

    endpoint = recordstore.find(settings, (usecase.name, "deployment", "endpoint"), EndpointRecord)
    if endpoint is not None and endpoint.model not in registered:
        raise ThroughlineError(
            f"The endpoint serves {endpoint.model}, which is not registered, so it is unknown what it pins: nothing is "
            "vacuumed. Deploy a registered version."
        )


def _feast_pins(settings: Settings, usecase: UseCase) -> set[TableVersion]:
    """What the Feast registry names: sources and saved datasets in this lakehouse."""
    from throughline.featurestore.store import open_store

    if not (settings.feast_home / usecase.name / "registry.db").exists():
        return set()
    store = open_store(settings, usecase)
    named = [
        *store.list_data_sources(),
        *(saved.storage for saved in store.registry.list_saved_datasets(store.project)),
    ]
    root = f"{settings.lakehouse}/"
    return {
        TableVersion(table=place.path.removeprefix(root), version=place.version)
        for place in named
        if getattr(place, "version", None) is not None and place.path.startswith(root)
    }


def _parsed(text: str) -> TableVersion:
    table, _, version = text.rpartition("@")
    return TableVersion(table=table, version=int(version))


# What is done


def maintain(
    settings: Settings, pins: Pins, retention: timedelta, now: datetime, tell: Callable[[str], None] = lambda line: None
) -> list[Maintained]:
    """Compact and vacuum every table of the home. Versions younger than `retention`, or pinned, stay readable."""
    done = []
    for table in tables(settings):
        result = _maintain_table(settings, table, sorted(pins.get(table, ())), retention, now)
        tell(str(result))
        done.append(result)
    return done


def tables(settings: Settings) -> list[str]:
    """Every `usecase/layer/table` of the home."""
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileSelector, FileType, PyFileSystem

    root = str(settings.lakehouse)
    if not in_bucket(root) and not Path(root).exists():
        return []
    storage = PyFileSystem(DeltaStorageHandler(root, storage_options(root)))

    def folders(name: str) -> list[str]:
        return [info.path for info in storage.get_file_info(FileSelector(name)) if info.type == FileType.Directory]

    found = [table for usecase in folders("") for layer in folders(usecase) for table in folders(layer)]
    return sorted(table for table in found if f"{table}/_delta_log" in folders(table))


def _maintain_table(
    settings: Settings, table: str, pinned: list[int], retention: timedelta, now: datetime
) -> Maintained:
    location = settings.lakehouse / table
    try:
        commits = history(location)
        if in_bucket(location) and not all("delta-rs" in commit.engine for commit in commits):
            return Maintained(table, pinned, skipped="left to Spark, which writes it on object storage")
        for version in pinned:
            open_table(location, version)
        delta = open_table(location)
        compacted = delta.optimize.compact()["numFilesRemoved"]
        removed = _vacuum(location, delta, pinned, retention)
        recent = {commit.version for commit in commits if commit.at > now - LOG_RETENTION}
        if recent.issuperset(pinned):
            delta.cleanup_metadata()
    except CommitFailedError:
        return Maintained(table, pinned, skipped="left for the next time: it is being written to")
    except (ThroughlineError, DeltaError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Maintained(table, pinned, failure=f"left as it is: {reason}")
    return Maintained(table, pinned, compacted, removed)


def _vacuum(location: Location, delta: DeltaTable, pinned: list[int], retention: timedelta) -> int:
    """Remove files that neither the log of the last `retention` nor a pinned version needs, also a killed writer's."""
    how = {
        "retention_hours": int(retention / timedelta(hours=1)),
        "enforce_retention_duration": False,
        "full": True,  # the log alone forgets a removed file after a week, pinned or not
        "keep_versions": pinned,
    }
    # a vacuum is two commits, also when there is nothing to do; and what was removed is listed again for a week
    listed = set(delta.vacuum(dry_run=True, **how))
    unneeded = listed - absent(location, listed)
    if unneeded:
        delta.vacuum(dry_run=False, **how)
    return len(unneeded)


def remove_old_runs(settings: Settings, retention: timedelta, now: datetime) -> int:
    """Remove what runs left behind for people to look at: dbt's targets, the output that Dagster captured."""
    removed = 0
    for place in (settings.dbt_home / "runs", settings.dagster_home / "storage"):
        for folder in place.iterdir() if place.is_dir() else ():
            age = now - datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            if folder.is_dir() and _is_run(folder.name) and age > retention:
                shutil.rmtree(folder)
                removed += 1
    return removed


def _is_run(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
