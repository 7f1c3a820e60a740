"""A Delta table at a version, addressed by URI: a folder, or a prefix of an S3-compatible store.

Owns: pinned reads, and writes that are one commit each: a reader sees the old version or the new one, a killed writer
leaves the old one, of two that write the same days one is refused. On object storage delta-rs is a table's only writer.
Does not own: the words with delta-rs (`delta.py`), what is declared (`rules.py`), removal (`maintenance.py`).
Every read names a version; there is no reader of "latest". Credentials: AWS_* or a profile, by the standard chain of
whoever asks: delta-rs, which writes, and Polars, which reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import polars as pl
import polars.selectors as cs
from deltalake import CommitProperties, DeltaTable, Schema

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings, in_bucket
from throughline.lakehouse.delta import (
    Location,
    TableConflict,
    create,
    find,
    overwrite,
    refusals,
    storage_options,
    with_rules,
)
from throughline.lakehouse.rules import Differences, Rules, compare

DAY = "day"
RUN_ID = "ingestion_run_id"

INPUTS = "inputs"  # in the notes of a commit: what it was made from, as a JSON list of TABLE@VERSION
KEEPS_CONTENT = {"OPTIMIZE", "VACUUM START", "VACUUM END"}
_ATTEMPTS = 10
_OWN_WORDS = {"timestamp", "operation", "operationParameters", "operationMetrics", "readVersion", "version",
              "engineInfo", "clientVersion", "isolationLevel", "isBlindAppend", "txnId"}  # fmt: skip


@dataclass(frozen=True)
class Commit:
    """One version of a table: `at` in UTC by the writer's clock, `notes` what the writer said beside it."""

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


def pin(settings: Settings, table: str) -> TableReference:
    """The address of `usecase/layer/table` as it stands now. Raises when it was never written."""
    version = current_version(settings.lakehouse / table)
    if version is None:
        raise ThroughlineError(f"Table {table} does not exist in {settings.lakehouse}: materialise it first.")
    return TableReference(table, version)


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
    """The rows of an open table at the version it was opened at; of a bucket, with the credentials of the AWS chain."""
    address = table.table_uri
    if not in_bucket(address):
        return pl.scan_delta(table)
    # Of an open table Polars takes no credentials, and its own reader knows no profile: it opens the table once more.
    # A provider keeps the credentials it found first, so each scan has its own; boto3 itself reads AWS_PROFILE.
    return pl.scan_delta(
        address,
        version=table.version(),
        storage_options=storage_options(address),
        credential_provider=pl.CredentialProviderAWS(),
    )


def _gone(location: Location, version: int) -> ThroughlineError:
    return ThroughlineError(
        f"Table {location}@{version} cannot be read: nothing pinned it, and it was vacuumed. Pin a version that stands "
        f"(the newest is {current_version(location)}), or materialise what you need again."
    )


def absent(location: Location, files: Collection[str]) -> set[str]:
    """Those of the table's files that are not there; each as a URI, or relative to the table."""
    if not files:
        return set()
    from deltalake.fs import DeltaStorageHandler
    from pyarrow.fs import FileType, PyFileSystem

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
            notes={name: value for name, value in entry.items() if name not in _OWN_WORDS},
        )
        for entry in open_table(location).history()
    ]


# Writing


def replace_days(location: Location, rows: pl.DataFrame, first: date, last: date, rules: Rules | None = None) -> int:
    """Write the local days [first, last] of a table partitioned by `day`, replacing what was there; one commit.

    Written twice, the content is the same: rows outside the days are untouched, rows inside come from `rows` alone.
    Declared new columns are null in the other days; a column of another type, or gone, must bring all days there are.
    Returns the new version. Raises `TableConflict` when one of these days was written by somebody else meanwhile.
    """
    outside = rows.filter(~pl.col(DAY).is_between(first, last).fill_null(False))
    if outside.height:
        raise ThroughlineError(f"{outside.height} rows for {location} lie outside {first} to {last}: nothing written.")
    rows = _as_stored(rows)
    return _attempts(lambda: _replace_days_once(location, rows, first, last, rules), lambda c: _kept(location, c))


def _replace_days_once(location: Location, rows: pl.DataFrame, first: date, last: date, rules: Rules | None) -> int:
    table = with_rules(location, rows, rules, partition_by=[DAY])
    if table is None:
        return create(location, rows, partition_by=[DAY])
    differences = _differences(location, table, rows, rules)
    if differences.only_new:
        predicate = f"{DAY} >= '{first.isoformat()}' AND {DAY} <= '{last.isoformat()}'"
        return overwrite(
            location, table, rows, predicate=predicate, schema_mode="merge" if differences.columns else None
        )
    beyond = rows_of(table).filter(~pl.col(DAY).is_between(first, last)).select(pl.len()).collect().item()
    if beyond:
        raise ThroughlineError(
            f"{differences} in {location} and {beyond} rows lie outside {first} to {last}: "
            "bring all of its days in one range."
        )
    return overwrite(location, table, rows, schema_mode="overwrite", partition_by=[DAY])


def replace_all(
    location: Location,
    rows: pl.DataFrame | pl.LazyFrame,
    notes: Mapping[str, str] | None = None,
    rules: Rules | None = None,
    inputs: Iterable[TableReference] = (),
) -> int:
    """Write a whole table as its next version and return that version; `notes` stand in its commit.

    Without rules the columns are whatever they are: who derives a whole table anew declares them by doing so.
    rows: a lazy frame passes in batches and without rules; it may be larger than memory.
    inputs: what the rows were made from; maintenance keeps those versions as long as this one is pinned.
    """
    rows = _as_stored(rows)
    said = dict(notes or {})
    if made_from := [str(pinned) for pinned in inputs]:
        said[INPUTS] = json.dumps(made_from)

    def write() -> int:
        table = with_rules(location, rows, rules)
        if table is None:
            return create(location, rows, notes=said)
        if rules is not None:
            _differences(location, table, rows, rules)
        properties = CommitProperties(custom_metadata=said or None)
        return overwrite(location, table, rows, schema_mode="overwrite", commit_properties=properties)

    return _attempts(write, lambda conflict: _kept(location, conflict))


def merge(
    location: Location,
    rows: pl.DataFrame,
    keys: list[str],
    newest: str,
    rules: Rules | None = None,
    provenance: Collection[str] = (),
) -> int:
    """Bring late and corrected rows: of each key, the row with the greatest `newest` (knowledge time) stands.

    Rows known at the same time are decided by their content: the result does not depend on order or on repetition, so
    it is tried again when another writer comes first. The same rows merged twice change nothing, not even the version.
    A row that is to be seen as it was known at different times has its knowledge time among the keys.

    provenance: columns that are no content, such as a run id; alone they make no difference.
    """
    rows = _as_stored(rows)
    if gaps := [name for name in (*keys, newest) if rows[name].has_nulls()]:
        raise ThroughlineError(f"Rows for {location} lack a value of {', '.join(gaps)}: nothing written.")
    return _attempts(lambda: _merge_once(location, rows, keys, newest, rules, provenance), lambda conflict: True)


def insert(location: Location, rows: pl.DataFrame, keys: list[str]) -> int:
    """Add the rows whose key the table does not hold; what it holds stays as it is. Tried again after a conflict."""
    rows = _as_stored(rows).unique(keys, keep="first", maintain_order=True)

    def write() -> int:
        table = find(location)
        if table is None:
            return create(location, rows)
        fresh = rows.join(_rows_of_keys(table, rows, keys), on=keys, how="anti")
        if fresh.height:
            same_key = " AND ".join(f'held."{key}" = brought."{key}"' for key in keys)
            with refusals(location, table):
                brought = table.merge(fresh.to_arrow(), same_key, source_alias="brought", target_alias="held")
                brought.when_not_matched_insert_all().execute()
        return table.version()

    return _attempts(write, lambda conflict: True)


def restore(location: Location, version: int) -> int:
    """Make the content of an earlier version the newest again; what came between stays in the history."""
    table = open_table(location)
    scan(location, version)
    if version != table.version():
        with refusals(location, table):
            table.restore(version)
    return table.version()


# The pieces of a write


def _attempts(write: Callable[[], int], again: Callable[[TableConflict], bool]) -> int:
    """What `write` returns; tried again after a conflict where `again` says that nobody's rows are lost by it."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return write()
        except TableConflict as conflict:
            if not again(conflict):
                raise
    return write()


def _kept(location: Location, conflict: TableConflict) -> bool:
    """Whether it was only maintenance that came first."""
    since = (commit.operation for commit in history(location) if commit.version > (conflict.seen or -1))
    return conflict.seen is not None and KEEPS_CONTENT.issuperset(since)


def _merge_once(
    location: Location,
    rows: pl.DataFrame,
    keys: list[str],
    newest: str,
    rules: Rules | None,
    provenance: Collection[str],
) -> int:
    content = sorted(set(rows.columns) - set(provenance))
    partition_by = [DAY] if DAY in rows.columns else None
    table = with_rules(location, rows, rules, partition_by)
    if table is None:
        return create(location, _winners(rows, keys, newest, content), partition_by=partition_by)
    differences = _differences(location, table, rows, rules)
    if not differences.only_new or set(keys) & set(differences.columns):
        raise ThroughlineError(f"{differences} in {location}, and a merge only adds columns: replace it whole.")
    held = _rows_of_keys(table, rows, keys)
    known = pl.concat([held, rows.cast(dict(held.schema))], how="diagonal")
    winners = _winners(known, keys, newest, content)
    changed = winners.join(known.head(held.height), on=content, how="anti", nulls_equal=True)
    if changed.is_empty():
        return table.version()
    same_key = " AND ".join(f'held."{key}" = brought."{key}"' for key in keys)
    with refusals(location, table):
        (
            table.merge(
                changed.to_arrow(),
                same_key,
                source_alias="brought",
                target_alias="held",
                merge_schema=bool(differences.columns),
            )
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .execute()
        )
    return table.version()


def _rows_of_keys(table: DeltaTable, rows: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """What the table holds under the keys of `rows`; by range first, which spares whole files."""
    bounds = {key: (pl.lit(rows[key].min()), pl.lit(rows[key].max())) for key in keys}  # a bare text is a column
    near = rows_of(table).filter(pl.col(key).is_between(*bounds[key]) for key in keys)
    return near.join(rows.lazy().select(keys).unique(), on=keys, how="semi").collect()


def _winners(rows: pl.DataFrame, keys: list[str], newest: str, content: list[str]) -> pl.DataFrame:
    """One row per key: the newest, of several that new the one with the greatest content."""
    order = [newest, *(name for name in content if name not in (newest, *keys))]
    ordered = rows.sort(order, descending=True, nulls_last=True, maintain_order=True)
    return ordered.unique(keys, keep="first", maintain_order=True)


Rows = TypeVar("Rows", pl.DataFrame, pl.LazyFrame)


def _as_stored(rows: Rows) -> Rows:
    return rows.with_columns(cs.datetime().dt.cast_time_unit("us"))


def _differences(location: Location, table: DeltaTable, rows: pl.DataFrame, rules: Rules | None) -> Differences:
    """How the columns of `rows` differ from the table's. Raises for one that nobody declared.

    Left to itself, delta-rs casts to the old types without a word: 1.5 becomes 1.
    """
    differences = compare(table.schema(), Schema.from_arrow(rows.to_arrow().schema))
    if undeclared := differences.undeclared(rules):
        raise ThroughlineError(
            f"{undeclared} in {location}, and nobody declared it: nothing written. Correct the rows, or declare it."
        )
    return differences
