"""Compacting and vacuuming the tables of a home; pinned versions stay readable.

Owns: compaction of small files, removal of files and log entries older than the retention. Does not own: which
versions are pinned (`retention/tables.py`), when it runs (`assets/maintenance.py`). Ages are by the wall clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, FileType, PyFileSystem

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, in_bucket
from throughline.lakehouse.delta import Location, storage_options
from throughline.lakehouse.table import absent, history, open_table

LOG_RETENTION = timedelta(days=30)  # of `delta.logRetentionDuration`, unless a table sets its own
Pins = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Maintained:
    """What was done to one table: files compacted and removed; `skipped` or `failure`: why nothing was."""

    table: str
    kept: list[int]
    compacted: int = 0
    removed: int = 0
    skipped: str | None = None
    failure: str | None = None

    def __str__(self) -> str:
        done = f"{self.compacted} files compacted, {self.removed} removed, pinned versions kept: {len(self.kept)}"
        return f"{self.table}: {self.failure or self.skipped or done}"


def maintain(
    settings: Settings, pins: Pins, retention: timedelta, now: datetime, log: Callable[[str], None] = lambda line: None
) -> list[Maintained]:
    """Compact and vacuum every table of the home. Versions younger than `retention`, or pinned, stay readable."""
    done = []
    for table in tables(settings):
        result = _maintain_table(settings, table, sorted(pins.get(table, ())), retention, now)
        log(str(result))
        done.append(result)
    return done


def tables(settings: Settings) -> list[str]:
    """Every USECASE/LAYER/TABLE of the home."""
    root = str(settings.lakehouse)
    if not in_bucket(root) and not Path(root).exists():
        return []
    storage = PyFileSystem(DeltaStorageHandler(root, storage_options(root)))

    def folders(name: str) -> list[str]:
        return [info.path for info in storage.get_file_info(FileSelector(name)) if info.type == FileType.Directory]

    found = [table for usecase in folders("") for layer in folders(usecase) for table in folders(layer)]
    return sorted(table for table in found if f"{table}/_delta_log" in folders(table))


def stored_bytes(settings: Settings, table: str) -> int:
    """Size of everything under USECASE/LAYER/TABLE: data of every kept version, and the log."""
    root = str(settings.lakehouse)
    storage = PyFileSystem(DeltaStorageHandler(root, storage_options(root)))
    return sum(info.size or 0 for info in storage.get_file_info(FileSelector(table, recursive=True)))


def _maintain_table(
    settings: Settings, table: str, pinned: list[int], retention: timedelta, now: datetime
) -> Maintained:
    location = settings.lakehouse / table
    try:
        commits = history(location)
        if in_bucket(location) and not all("delta-rs" in commit.engine for commit in commits):
            return Maintained(table, pinned, skipped="skipped: Spark writes it on object storage")
        for version in pinned:
            open_table(location, version)
        delta = open_table(location)
        compacted = delta.optimize.compact()["numFilesRemoved"]
        removed = _vacuum(location, delta, pinned, retention)
        recent = {commit.version for commit in commits if commit.at > now - LOG_RETENTION}
        if recent.issuperset(pinned):
            delta.cleanup_metadata()
    except CommitFailedError:
        return Maintained(table, pinned, skipped="skipped until the next run: it is being written")
    except (ThroughlineError, DeltaError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Maintained(table, pinned, failure=f"not maintained: {reason}")
    return Maintained(table, pinned, compacted, removed)


def _vacuum(location: Location, delta: DeltaTable, pinned: list[int], retention: timedelta) -> int:
    """Remove files that no version of the last `retention` and no pinned one needs, also those of a killed writer."""

    def vacuum(dry_run: bool) -> set[str]:
        hours = int(retention / timedelta(hours=1))
        # full: after a week the log no longer lists a removed file, pinned or not
        return set(delta.vacuum(hours, dry_run, enforce_retention_duration=False, full=True, keep_versions=pinned))

    # a vacuum makes two commits even when it removes nothing, and lists what was removed for another week
    listed = vacuum(dry_run=True)
    unneeded = listed - absent(location, listed)
    if unneeded:
        vacuum(dry_run=False)
    return len(unneeded)
