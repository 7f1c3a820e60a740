"""A Delta table at a version, for small reads and writes by delta-rs.

Owns: idempotent writes and pinned reads by path. Does not own: transformations (Spark, see `spark.py`).
Every read names a version; there is no reader of "latest".
"""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import polars.selectors as cs
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from throughline.errors import ThroughlineError
from throughline.records import TableVersion
from throughline.settings import Settings

DAY = "day"


def current_version(path: Path) -> int | None:
    """The newest version of the table at `path`, or None when there is no table."""
    if not path.exists():
        return None
    try:
        return DeltaTable(str(path)).version()
    except TableNotFoundError:
        return None


def pin(settings: Settings, table: str) -> TableVersion:
    """The address of `usecase/layer/table` as it stands now. Raises when it was never written."""
    version = current_version(settings.lakehouse / table)
    if version is None:
        raise ThroughlineError(f"Table {table} does not exist in {settings.lakehouse}: materialise it first.")
    return TableVersion(table=table, version=version)


def read(settings: Settings, pinned: TableVersion) -> pl.LazyFrame:
    """The rows of a pinned table. Raises when that version is gone."""
    path = settings.lakehouse / pinned.table
    try:
        table = DeltaTable(str(path), version=pinned.version)
    except (DeltaError, OSError) as error:
        raise ThroughlineError(
            f"Table {pinned} cannot be read from {path} ({str(error).splitlines()[0]}): was it vacuumed or moved?"
        ) from error
    return pl.scan_delta(table)


def replace_days(path: Path, rows: pl.DataFrame, first: date, last: date) -> int:
    """Write the local days [first, last] of a table partitioned by `day`, replacing what was there; one commit.

    Written twice, the content is the same: rows outside the days are untouched, rows inside come from `rows` alone.
    Changed columns are taken only when the range covers every day there is. Returns the new version.
    """
    outside = rows.filter(~pl.col(DAY).is_between(first, last).fill_null(False))
    if outside.height:
        raise ThroughlineError(f"{outside.height} rows for {path.name} lie outside {first} to {last}: nothing written.")
    version = current_version(path)
    rows = rows.with_columns(cs.datetime().dt.cast_time_unit("us"))  # as Delta stores it
    if version is None:
        write_deltalake(str(path), rows.to_arrow(), partition_by=[DAY], mode="error")
    elif _columns(Schema.from_arrow(rows.to_arrow().schema)) != _columns(DeltaTable(str(path)).schema()):
        # Left to itself, delta-rs casts to the old types without a word: 1.5 becomes 1.
        held = pl.scan_delta(str(path), version=version)
        beyond = held.filter(~pl.col(DAY).is_between(first, last)).select(pl.len()).collect().item()
        if beyond:
            raise ThroughlineError(
                f"The columns of {path.name} changed and {beyond} rows lie outside {first} to {last}: "
                "bring all of its days in one range."
            )
        write_deltalake(str(path), rows.to_arrow(), mode="overwrite", schema_mode="overwrite", partition_by=[DAY])
    else:
        write_deltalake(
            str(path),
            rows.to_arrow(),
            mode="overwrite",
            predicate=f"{DAY} >= '{first.isoformat()}' AND {DAY} <= '{last.isoformat()}'",
        )
    return DeltaTable(str(path)).version()


def _columns(schema: Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema.fields}


def replace_all(path: Path, rows: pl.DataFrame, commit_properties: dict[str, str] | None = None) -> int:
    """Write a whole table as its next version and return that version."""
    from deltalake import CommitProperties

    write_deltalake(
        str(path),
        rows.to_arrow(),
        mode="overwrite",
        schema_mode="overwrite",
        commit_properties=CommitProperties(custom_metadata=commit_properties) if commit_properties else None,
    )
    return DeltaTable(str(path)).version()
