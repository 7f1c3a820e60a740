"""Which table versions must stay readable, and why.

Pinned are the versions that a record, the Feast registry or a registered model version names, and the versions from
which those were made. Owns: collecting these pins; a pin that cannot be read is an error, and nothing is vacuumed.
Does not own: removing files (`lakehouse/maintenance.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import INPUTS, current_version, history
from throughline.records import EndpointRecord
from throughline.usecase import UseCase


def collect_pins(settings: Settings, usecases: Iterable[UseCase]) -> dict[str, set[int]]:
    """Table -> versions that must stay readable. Needs this home's MLflow. Raises where pins cannot be read."""
    roots: set[TableReference] = set()
    for usecase in usecases:
        registered = _registered_datasets(settings, usecase)
        _refuse_unknown_endpoint(settings, usecase, registered)
        roots |= {*registered.values(), *_feast_pins(settings, usecase)}
    return with_inputs(settings, {*roots, *recorded_pins(settings)})


def recorded_pins(settings: Settings) -> set[TableReference]:
    """Every table version that a record of this home names."""
    pins: set[TableReference] = set()
    for file in sorted(settings.records.rglob("*.json")):
        try:
            pins |= set(_versions_in(json.loads(file.read_text())))
        except (OSError, ValueError) as error:
            raise ThroughlineError(
                f"Record {file} cannot be read ({type(error).__name__}), so it is unknown what it pins: nothing is "
                "vacuumed. Materialise its asset again, or remove the file."
            ) from error
    return pins


def with_inputs(settings: Settings, roots: Iterable[TableReference]) -> dict[str, set[int]]:
    """The roots, and, as far as the tables' history tells, the versions they were made from."""
    pins: dict[str, set[int]] = defaultdict(set)
    histories: dict[str, list[tuple[int, list[TableReference]]]] = {}
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


def _inputs_by_version(settings: Settings, table: str) -> list[tuple[int, list[TableReference]]]:
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


def _inputs(table: str, notes: Mapping[str, Any]) -> list[TableReference] | None:
    if INPUTS in notes:
        return [_parsed(text) for text in json.loads(notes[INPUTS])]
    if "userMetadata" in notes:  # a feature table's: {"pins": {raw table: version}}
        usecase = table.partition("/")[0]
        pins = json.loads(notes["userMetadata"])["pins"]
        return [TableReference(table=f"{usecase}/raw/{name}", version=version) for name, version in pins.items()]
    return None


def _versions_in(value: Any) -> Iterator[TableReference]:
    if isinstance(value, dict):
        if {"table", "version"} <= value.keys():
            yield TableReference(table=value["table"], version=value["version"])
        for part in value.values():
            yield from _versions_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _versions_in(part)


def _registered_datasets(settings: Settings, usecase: UseCase) -> dict[str, TableReference]:
    """Model reference -> the dataset that version was trained on."""
    from throughline.registry.versions import dataset_tables

    return {reference: _parsed(text) for reference, text in dataset_tables(settings, usecase.name).items()}


def _refuse_unknown_endpoint(settings: Settings, usecase: UseCase, registered: Collection[str]) -> None:
    from throughline.records.store import find_record

    endpoint = find_record(settings, (usecase.name, "deployment", "endpoint"), EndpointRecord)
    if endpoint is not None and endpoint.model not in registered:
        raise ThroughlineError(
            f"The endpoint serves {endpoint.model}, which is not registered, so it is unknown what it pins: nothing is "
            "vacuumed. Deploy a registered version."
        )


def _feast_pins(settings: Settings, usecase: UseCase) -> set[TableReference]:
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
        TableReference(table=place.path.removeprefix(root), version=place.version)
        for place in named
        if getattr(place, "version", None) is not None and place.path.startswith(root)
    }


def _parsed(text: str) -> TableReference:
    table, _, version = text.rpartition("@")
    return TableReference(table=table, version=int(version))
