"""Which table versions must stay readable, and why.

Owns: the pins: versions that a record, the Feast registry or a registered model version names, and the versions from
which those were made. Raises where one cannot be read. Does not own: removing files (`lakehouse/maintenance.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

from throughline.featurestore.incremental import inputs_of
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, history
from throughline.records import EndpointRecord
from throughline.records.store import find_record, recorded_values
from throughline.registry.versions import dataset_tables
from throughline.usecase import UseCase


def collect_pins(settings: Settings, usecases: Iterable[UseCase]) -> dict[str, set[int]]:
    """Table -> versions that must stay readable. Needs this home's MLflow. Raises where pins cannot be read."""
    roots = recorded_pins(settings)
    for usecase in usecases:
        datasets = dataset_tables(settings, usecase.name)
        endpoint = find_record(settings, (usecase.name, "deployment", "endpoint"), EndpointRecord)
        if endpoint is not None and endpoint.model not in datasets:
            raise ThroughlineError(
                f"The endpoint serves {endpoint.model}, which is not registered, so it is unknown what it pins: "
                "nothing is vacuumed. Deploy a registered version."
            )
        roots |= {*datasets.values(), *feast_pins(settings, usecase)}
    return with_inputs(settings, roots)


def recorded_pins(settings: Settings) -> set[TableReference]:
    """Every table version that a record of this home names."""
    pins: set[TableReference] = set()
    for value in recorded_values(settings.records, "nothing is vacuumed"):
        if isinstance(value, str):
            with suppress(ThroughlineError):  # a text that is no reference
                pins.add(TableReference.parse(value))
    return pins


def with_inputs(settings: Settings, roots: Iterable[TableReference]) -> dict[str, set[int]]:
    """The roots and the versions they were made from, as far as the commits of the tables name them."""
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
    """The commits that name what they were made from, newest first."""
    location = settings.lakehouse / table
    if current_version(location) is None:
        return []
    commits = history(location)
    try:
        named = [(commit.version, inputs_of(table, commit)) for commit in commits]
    except (ThroughlineError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ThroughlineError(
            f"A commit of {table} names its inputs in an unknown form ({error!r}), so it is unknown what it pins: "
            "nothing is vacuumed. Correct the program that writes `inputs` or userMetadata there."
        ) from error
    return [(version, inputs) for version, inputs in named if inputs is not None]


def feast_pins(settings: Settings, usecase: UseCase) -> set[TableReference]:
    """The versions that the Feast registry names: of sources and of saved datasets in this lakehouse."""
    from throughline.featurestore.store import open_store  # postpones feast (4 s)

    if not (settings.feast_home / usecase.name / "registry.db").exists():
        return set()
    store = open_store(settings, usecase)
    datasets = store.registry.list_saved_datasets(store.project)
    named = [*store.list_data_sources(), *(saved.storage for saved in datasets)]
    root = f"{settings.lakehouse}/"
    places = [(getattr(each, "path", ""), getattr(each, "version", None)) for each in named]
    ours = [(path, version) for path, version in places if version is not None and path.startswith(root)]
    return {TableReference(path.removeprefix(root), version) for path, version in ours}
