"""Removal of what past runs left on disk: dbt's targets, the output that Dagster captured."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta

from throughline.foundation.settings import Settings

_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def remove_old_runs(settings: Settings, retention: timedelta, now: datetime) -> int:
    """Remove the folders of runs older than `retention`; returns how many."""
    removed = 0
    for place in (settings.dbt_home / "runs", settings.dagster_home / "storage"):
        for folder in place.iterdir() if place.is_dir() else ():
            age = now - datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            if folder.is_dir() and _RUN_ID.fullmatch(folder.name) and age > retention:
                shutil.rmtree(folder)
                removed += 1
    return removed
