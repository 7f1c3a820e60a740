"""What is said to delta-rs about one table: opening it, a commit, and what it answers, in one line.

Owns: credentials, the properties of a new table, which error means that another writer came first. Does not own: what
a table promises (`table.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from upath import UPath

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import in_bucket
from throughline.lakehouse.rules import Rules

Location = Path | UPath | str

# Left to itself, a checkpoint removes what is older than 30 days from the log, pinned or not.
PROPERTIES = {"delta.enableChangeDataFeed": "true", "delta.enableExpiredLogCleanup": "false"}
_BATCH_ROWS = 1_000_000


class TableConflict(ThroughlineError):
    """Another writer came first; nothing of this write is in the table, which it saw as of version `seen`."""

    def __init__(self, message: str, seen: int | None) -> None:
        super().__init__(message)
        self.seen = seen


def storage_options(location: Location) -> dict[str, str] | None:
    """What delta-rs must be told to look for credentials where every AWS tool does, also at another endpoint."""
    return {"AWS_FORCE_CREDENTIAL_LOAD": "true"} if in_bucket(location) else None


def find(location: Location, version: int | None = None) -> DeltaTable | None:
    """The table as it stands, or at a version; None when there is none. Raises when it cannot be said or read."""
    try:
        return DeltaTable(str(location), version=version, storage_options=storage_options(location))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        address = str(location) if version is None else f"{location}@{version}"
        raise ThroughlineError(
            f"Table {address} cannot be read ({_first_line(error)}): correct the version or the address, or see that "
            "its storage can be reached."
        ) from error


def create(
    location: Location,
    rows: pl.DataFrame | pl.LazyFrame,
    partition_by: list[str] | None = None,
    notes: dict[str, str] | None = None,
) -> int:
    """Write the first version of a table and return its number. Raises `TableConflict` when there is one already."""
    with refusals(location):
        write_deltalake(
            str(location),
            _arrow(rows),
            mode="error",
            partition_by=partition_by,
            configuration=PROPERTIES,
            storage_options=storage_options(location),
            commit_properties=_first_commit(notes),
        )
    return 0


def _first_commit(notes: dict[str, str] | None = None) -> CommitProperties:
    """Of two writers that create a table, delta-rs would otherwise append the rows of one to those of the other."""
    return CommitProperties(custom_metadata=notes or None, max_commit_retries=0)


def overwrite(location: Location, table: DeltaTable, rows: pl.DataFrame | pl.LazyFrame, **how: Any) -> int:
    """Overwrite as seen from `table`: what others committed since then is a conflict where it touches the same rows."""
    with refusals(location, table):
        write_deltalake(table, _arrow(rows), mode="overwrite", **how)
    return table.version()


def with_rules(
    location: Location, rows: pl.DataFrame, rules: Rules | None, partition_by: list[str] | None = None
) -> DeltaTable | None:
    """The table, with the rules' constraints in place; None when there is none and nothing must precede its rows."""
    table = find(location)
    if rules is None or not (rules.constraints or table):
        return table
    with refusals(location, table, rules.constraints):
        if table is None:
            schema = Schema.from_arrow(rows.to_arrow().schema)
            table = DeltaTable.create(
                str(location),
                schema,
                partition_by=partition_by,
                configuration=PROPERTIES,
                storage_options=storage_options(location),
                commit_properties=_first_commit(),
            )
        held = _constraints(table)
        for name in [name for name, check in held.items() if rules.constraints.get(name) != check]:
            table.alter.drop_constraint(name)
            del held[name]
        if missing := {name: check for name, check in rules.constraints.items() if name not in held}:
            table.alter.add_constraint(missing)
    return table


def _arrow(rows: pl.DataFrame | pl.LazyFrame) -> pa.Table | pa.RecordBatchReader:
    """For the writer, which keeps the order within a batch only; a lazy frame is read while it is written."""
    if isinstance(rows, pl.DataFrame):
        return rows.to_arrow()
    schema = pl.DataFrame(schema=rows.collect_schema()).to_arrow().schema
    frames = rows.collect_batches(chunk_size=_BATCH_ROWS, lazy=True)
    batches = (batch for frame in frames for batch in frame.rechunk().to_arrow().cast(schema).to_batches())
    return pa.RecordBatchReader.from_batches(schema, batches)


@contextmanager
def refusals(
    location: Location, table: DeltaTable | None = None, constraints: Mapping[str, str] | None = None
) -> Iterator[None]:
    """What delta-rs says in pages, in one line."""
    try:
        yield
    except (DeltaError, OSError) as error:
        line = _first_line(error)
        if isinstance(error, CommitFailedError) or "already exists" in line:
            raise TableConflict(
                f"Table {location} was written by somebody else meanwhile ({line}): nothing of this write is in it; "
                "run it again.",
                table.version() if table else None,
            ) from error
        if "failed validation check" in line:
            checks = constraints or (_constraints(table) if table else {})
            raise ThroughlineError(
                f"Rows for {location} break a constraint of it ({'; '.join(sorted(checks.values()))}): nothing "
                "written; correct the rows or what is declared."
            ) from error
        raise ThroughlineError(f"Table {location} was not written ({line}).") from error


def _constraints(table: DeltaTable) -> dict[str, str]:
    prefix = "delta.constraints."
    configuration = table.metadata().configuration
    return {name.removeprefix(prefix): check for name, check in configuration.items() if name.startswith(prefix)}


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
