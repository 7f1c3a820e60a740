"""Opening a Delta table and committing to it through delta-rs.

Owns: storage credentials, properties of a new table, errors as one line, conflicts with another writer. Does not own:
which rows a write replaces (`table.py`) or adds (`append.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from upath import UPath

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import in_bucket

Location = Path | UPath | str
T = TypeVar("T")

# A checkpoint would otherwise remove log entries older than 30 days, pinned or not.
PROPERTIES = {"delta.enableChangeDataFeed": "true", "delta.enableExpiredLogCleanup": "false"}
# Without it, delta-rs repeats an append or a creation after another writer's commit: both writers' rows are kept.
ONE_ATTEMPT = CommitProperties(max_commit_retries=0)
_ATTEMPTS = 10
_BATCH_ROWS = 1_000_000


class TableConflict(ThroughlineError):
    """Another writer committed first; nothing of this write is in the table. `seen`: the version it was based on."""

    def __init__(self, message: str, seen: int | None) -> None:
        super().__init__(message)
        self.seen = seen


def retry_conflicts(write: Callable[[], T], again: Callable[[TableConflict], bool]) -> T:
    """What `write` returns; repeated up to ten times after a conflict for which `again` holds."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return write()
        except TableConflict as conflict:
            if not again(conflict):
                raise
    return write()


def storage_options(location: Location) -> dict[str, str] | None:
    """Options by which delta-rs uses the standard AWS credentials chain, also for another endpoint."""
    return {"AWS_FORCE_CREDENTIAL_LOAD": "true"} if in_bucket(location) else None


def find(location: Location, version: int | None = None) -> DeltaTable | None:
    """The table as it stands, or at a version; None when there is none. Raises when it cannot be read."""
    try:
        return DeltaTable(str(location), version=version, storage_options=storage_options(location))
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        address = str(location) if version is None else f"{location}@{version}"
        raise ThroughlineError(
            f"Table {address} cannot be read ({_first_line(error)}): correct the version or the address, or check that "
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
            commit_properties=CommitProperties(custom_metadata=notes or None, max_commit_retries=0),
        )
    return 0


def overwrite(location: Location, table: DeltaTable, rows: pl.DataFrame | pl.LazyFrame, **how: Any) -> int:
    """Overwrite rows of `table`; the new version. Raises `TableConflict` when another writer's commit touched them."""
    with refusals(location, table):
        write_deltalake(table, _arrow(rows), mode="overwrite", **how)
    return table.version()


def _arrow(rows: pl.DataFrame | pl.LazyFrame) -> pa.Table | pa.RecordBatchReader:
    """For the writer, which keeps the order within a batch only; a lazy frame is read while it is written."""
    if isinstance(rows, pl.DataFrame):
        return rows.to_arrow()
    schema = pl.DataFrame(schema=rows.collect_schema()).to_arrow().schema
    frames = rows.collect_batches(chunk_size=_BATCH_ROWS, lazy=True)
    batches = (batch for frame in frames for batch in frame.rechunk().to_arrow().cast(schema).to_batches())
    return pa.RecordBatchReader.from_batches(schema, batches)


@contextmanager
def refusals(location: Location, table: DeltaTable | None = None) -> Generator[None]:
    """Turns the errors of a write into one line; `table` is the one it was based on."""
    try:
        yield
    except (DeltaError, OSError) as error:
        line = _first_line(error)
        if isinstance(error, CommitFailedError) or "already exists" in line:
            raise TableConflict(
                f"Table {location} was written by another process meanwhile ({line}): nothing of this write is in it; "
                "run it again.",
                table.version() if table else None,
            ) from error
        raise ThroughlineError(f"Table {location} was not written ({line}).") from error


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
