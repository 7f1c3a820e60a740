"""What was done to model versions, by whom and why: one Delta table per use case that is only ever added to.

Owns: the table's schema and place, telling and reading. Does not own: who somebody is
(`foundation/security/principal.py`), what follows from an event (`registry/approval.py`, `rollout/`).
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

import polars as pl

from throughline.foundation.clock import WallClock
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.append import AppendOnce
from throughline.lakehouse.table import find_pin, read
from throughline.records import HistoryAction, HistoryEvent

LAYER, TABLE = "governance", "history"
_SCHEMA = {
    "id": pl.String,
    "at": pl.Datetime("us", "UTC"),
    "actor": pl.String,
    "action": pl.String,
    "target": pl.String,
    "old": pl.String,
    "new": pl.String,
    "reason": pl.String,
}


def event_of(
    action: HistoryAction,
    target: ModelReference | str,
    actor: str,
    *,
    old: ModelReference | str | None = None,
    new: ModelReference | str | None = None,
    reason: str = "",
    once: Any = None,
) -> HistoryEvent:
    """An event of now. `once`: what makes it this very event, where a step that is repeated must not tell it twice."""
    now = WallClock().now()
    values = {"old": None if old is None else str(old), "new": None if new is None else str(new), "reason": reason}
    same = [action, str(target), once if once is not None else [actor, now.isoformat(), *values.values()]]
    identity = hashlib.sha256(json.dumps(same, default=str, sort_keys=True).encode()).hexdigest()[:32]
    return HistoryEvent(id=identity, at=now, actor=actor, action=action, target=str(target), **values)


def change(event: HistoryEvent) -> str:
    """Old and new value as a person reads them, of whatever is no decision."""
    if event.action in ("champion", "withdrawn"):
        return f"{event.old or 'nobody'} → {event.new}"
    return (event.new or "")[:12]  # a digest


def append(settings: Settings, usecase: str, event: HistoryEvent) -> None:
    """Add the event, unless it was told before. Two processes may tell at the same time."""
    table = AppendOnce(settings.table_path(usecase, LAYER, TABLE))
    table.append(pl.DataFrame([event.model_dump()], schema=_SCHEMA))


def events(
    settings: Settings, usecase: str, *, target: ModelReference | str | None = None, action: str | None = None,
    since: datetime | None = None,
) -> list[HistoryEvent]:  # fmt: skip
    """Oldest first. `target` NAME gives those of its versions, too."""
    table = find_pin(settings, f"{usecase}/{LAYER}/{TABLE}")
    if table is None:
        return []
    rows = read(settings, table)
    if target is not None:
        rows = rows.filter((pl.col("target") == str(target)) | pl.col("target").str.starts_with(f"{target}/"))
    if action is not None:
        rows = rows.filter(pl.col("action") == action)
    if since is not None:
        rows = rows.filter(pl.col("at") >= since)
    return [HistoryEvent.model_validate(row) for row in rows.sort("at", "id").collect().to_dicts()]
