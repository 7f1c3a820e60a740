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

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, in_bucket
from throughline.lakehouse.delta import Location, storage_options
from throughline.lakehouse.table import absent, history, open_table

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
