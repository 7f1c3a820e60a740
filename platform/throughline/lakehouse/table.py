"""A Delta table at a version, addressed by URI: a folder, or a prefix of an S3-compatible store.

Owns: reads of a named version, and writes that are one commit each: a killed writer leaves the old version, of two
writers of the same days one is refused. On object storage delta-rs is a table's only writer. Does not own: delta-rs
itself (`delta.py`), appending once (`append.py`), removal (`maintenance.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import polars.selectors as cs
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileType, PyFileSystem

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings, in_bucket
from throughline.lakehouse.delta import (
    Location,
    TableConflict,
    create,
    find,
    overwrite,
    retry_conflicts,
    storage_options,
)

DAY = "day"
RUN_ID = "ingestion_run_id"
INSTANT = pl.Datetime("us", "UTC")

INPUTS = "inputs"  # in the notes of a commit: what it was made from, as a JSON list of table references
KEEPS_CONTENT = {"OPTIMIZE", "VACUUM START", "VACUUM END"}
_AS_STORED = cs.datetime().dt.cast_time_unit("us")
_NOT_NOTES = {"timestamp", "operation", "operationParameters", "operationMetrics", "readVersion", "version",
              "engineInfo", "clientVersion", "isolationLevel", "isBlindAppend", "txnId"}  # fmt: skip


@dataclass(frozen=True)
class Commit:
    """One version of a table: `at` in UTC by the writer's clock, `notes` the metadata its writer added."""

    version: int
    at: datetime
    operation: str
    engine: str
    notes: Mapping[str, Any]


# Reading


def open_table(location: Location, version: int | None = None) -> DeltaTable:
    """The table as it stands, or at a version. Raises one line when it is no Delta table or that version is gone."""
    table = find(location, version)
    if table is None and version is not None and current_version(location) is not None:
        raise _gone(location, version)
    if table is None:
        raise ThroughlineError(f"{location} is not a Delta table: correct the address, or materialise it first.")
    return table


def current_version(location: Location) -> int | None:
    """The newest version of the table at `location`, or None when there is no table."""
    table = find(location)
    return None if table is None else table.version()


def find_pin(settings: Settings, table: str) -> TableReference | None:
    """The reference of USECASE/LAYER/TABLE as it stands now; None when it was never written."""
    version = current_version(settings.lakehouse / table)
    return None if version is None else TableReference(table, version)


def pin(settings: Settings, table: str) -> TableReference:
    """The reference of USECASE/LAYER/TABLE as it stands now. Raises when it was never written."""
    pinned = find_pin(settings, table)
    if pinned is None:
        raise ThroughlineError(f"Table {table} does not exist in {settings.lakehouse}: materialise it first.")
    return pinned


def read(settings: Settings, pinned: TableReference) -> pl.LazyFrame:
    """The rows of a pinned table. Raises when that version is gone."""
    return scan(settings.lakehouse / pinned.table, pinned.version)


def scan(location: Location, version: int) -> pl.LazyFrame:
    """The rows of a table at a version. Raises now, not at `collect`, when files of that version were removed."""
    table = open_table(location, version)
    newest = open_table(location)
    # only what the newest version does not use is ever removed
    risky = set(table.file_uris()) - set(newest.file_uris())
    if absent(location, risky):
        raise _gone(location, version)
    return rows_of(table)


def rows_of(table: DeltaTable) -> pl.LazyFrame:
    """The rows of an open table at the version it was opened at."""
    address = table.table_uri
    if not in_bucket(address):
        return pl.scan_delta(table)
    # Polars takes no credentials for an open table, and its own reader knows only AWS_*: it opens the address. A
    # provider keeps the first credentials, so each scan has its own; boto3 itself reads AWS_PROFILE.
    return pl.scan_delta(
        address,
        version=table.version(),
        storage_options=storage_options(address),
        credential_provider=pl.CredentialProviderAWS(),
    )


def _gone(location: Location, version: int) -> ThroughlineError:
    return ThroughlineError(
        f"Table {location}@{version} cannot be read: nothing pinned it, and it was vacuumed. Pin another version "
        f"(the newest is {current_version(location)}), or materialise what you need again."
    )


def absent(location: Location, files: Collection[str]) -> set[str]:
    """Those of the table's files that are not there; each as a URI, or relative to the table."""
    if not files:
        return set()
    root = f"{location}/"
    storage = PyFileSystem(DeltaStorageHandler(str(location), storage_options(location)))
    names = {file.removeprefix(root): file for file in files}
    return {names[info.path] for info in storage.get_file_info(list(names)) if info.type == FileType.NotFound}


def history(location: Location) -> list[Commit]:
    """The table's commits, newest first, as far back as its log goes."""
    return [
        Commit(
            version=entry["version"],
            at=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
            operation=entry["operation"],
            engine=entry.get("engineInfo", ""),
            notes={name: value for name, value in entry.items() if name not in _NOT_NOTES},
        )
        for entry in open_table(location).history()
    ]


# Writing


def replace_days(location: Location, rows: pl.DataFrame, first: date, last: date, *, new_columns: bool = False) -> int:
    """Write the local days [first, last] of a table partitioned by `day`, replacing what was there; one commit.

    Written twice, the content is the same. new_columns: columns may differ from the table's. A new one is null in the
    other days; with one that is gone or of another type, `rows` must hold all days of the table. Returns the new
    version. Raises `TableConflict` when another process wrote one of these days meanwhile.
    """
    outside = rows.filter(~pl.col(DAY).is_between(first, last).fill_null(False))
    if outside.height:
        raise ThroughlineError(f"{outside.height} rows for {location} lie outside {first} to {last}: nothing written.")
    rows = rows.with_columns(_AS_STORED)
    return retry_conflicts(
        lambda: _replace_days(location, rows, first, last, new_columns), lambda c: _only_maintained(location, c)
    )


def _replace_days(location: Location, rows: pl.DataFrame, first: date, last: date, new_columns: bool) -> int:
    table = find(location)
    if table is None:
        return create(location, rows, partition_by=[DAY])
    changes = _changes(table.schema(), Schema.from_arrow(rows.to_arrow().schema))
    differences = "; ".join(sorted(changes.values()))
    if changes and not new_columns:
        # delta-rs would cast to the table's types without an error: 1.5 becomes 1
        raise ThroughlineError(f"{differences} in {location}, undeclared: nothing written. Correct it, or declare it.")
    if set(changes).isdisjoint(field.name for field in table.schema().fields):
        predicate = f"{DAY} >= '{first.isoformat()}' AND {DAY} <= '{last.isoformat()}'"
        return overwrite(location, table, rows, predicate=predicate, schema_mode="merge" if changes else None)
    beyond = rows_of(table).filter(~pl.col(DAY).is_between(first, last)).select(pl.len()).collect().item()
    if beyond:
        raise ThroughlineError(
            f"{differences} in {location} and {beyond} rows lie outside {first} to {last}: "
            "bring all of its days in one range."
        )
    return overwrite(location, table, rows, schema_mode="overwrite", partition_by=[DAY])


def _changes(held: Schema, brought: Schema) -> dict[str, str]:
    """Column -> how it differs; the order of columns and whether nulls are allowed is no difference."""
    before = {field.name: _type_name(field.type) for field in held.fields}
    now = {field.name: _type_name(field.type) for field in brought.fields}
    changes = {}
    for name in {**before, **now}:
        if name not in before:
            changes[name] = f"column {name} is new ({now[name]})"
        elif name not in now:
            changes[name] = f"column {name} is missing (was {before[name]})"
        elif before[name] != now[name]:
            changes[name] = f"column {name} was {before[name]} and is {now[name]}"
    return changes


def _type_name(delta_type: object) -> str:
    kind = getattr(delta_type, "type", None)
    return kind if kind and kind not in ("struct", "array", "map") else str(delta_type)


def replace_all(
    location: Location,
    rows: pl.DataFrame | pl.LazyFrame,
    notes: Mapping[str, str] | None = None,
    inputs: Iterable[TableReference] = (),
) -> int:
    """Write a whole table, whatever its columns were, as its next version and return that version.

    rows: a lazy frame passes in batches; it may be larger than memory. notes: metadata of the commit.
    inputs: what the rows were made from; maintenance keeps those versions as long as this one is pinned.
    """
    stored, metadata = rows.with_columns(_AS_STORED), dict(notes or {})
    if made_from := [str(pinned) for pinned in inputs]:
        metadata[INPUTS] = json.dumps(made_from)

    def write() -> int:
        table = find(location)
        if table is None:
            return create(location, stored, notes=metadata)
        properties = CommitProperties(custom_metadata=metadata or None)
        return overwrite(location, table, stored, schema_mode="overwrite", commit_properties=properties)

    return retry_conflicts(write, lambda conflict: _only_maintained(location, conflict))


def _only_maintained(location: Location, conflict: TableConflict) -> bool:
    """Whether every commit that came first kept the table's content."""
    if conflict.seen is None:
        return False
    since = (commit.operation for commit in history(location) if commit.version > conflict.seen)
    return KEEPS_CONTENT.issuperset(since)
