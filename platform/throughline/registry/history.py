"""The history of model versions: who did what and why, one append-only Delta table per use case.

Owns: the table's schema and place, appending and reading events. Does not own: principals
(`foundation/security/principal.py`), what follows from an event (`registry/approval.py`, `rollout/`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import polars as pl

from throughline.foundation.clock import WallClock
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.append import AppendOnce
from throughline.lakehouse.table import find_pin, read
from throughline.records import GateDecision, HistoryAction, HistoryEvent

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
    """An event of now. `once`: the key of an event whose repetition is not appended again."""
    now = WallClock().now()
    values = {"old": None if old is None else str(old), "new": None if new is None else str(new), "reason": reason}
    key = [action, str(target), once if once is not None else [actor, now.isoformat(), *values.values()]]
    digest = hashlib.sha256(json.dumps(key, default=str, sort_keys=True).encode()).hexdigest()[:32]
    return HistoryEvent(id=digest, at=now, actor=actor, action=action, target=str(target), **values)


def change(event: HistoryEvent) -> str:
    """What an event changed, for people, without its reason."""
    if event.action in ("champion", "withdrawn"):
        return f"{event.old or 'none'} → {event.new}"
    if event.action == "rollout":
        return event.new or ""
    if event.action != "decided":
        return (event.new or "")[:12]  # a digest
    try:
        return GateDecision.model_validate_json(event.new or "").decision
    except ValueError:
        return "cannot be read"


def concerning(events: Iterable[HistoryEvent], model: ModelReference) -> list[HistoryEvent]:
    """A version's own events, those by which it became champion or ceased to be, and notes on the model as a whole."""
    version, name = str(model), model.name
    return [
        event
        for event in events
        if version in (event.target, event.old, event.new) or (event.action == "note" and event.target == name)
    ]


def append(settings: Settings, usecase: str, event: HistoryEvent) -> None:
    """Add the event, unless it is there already. Safe from several processes at once."""
    table = AppendOnce(settings.table_path(usecase, LAYER, TABLE))
    table.append(pl.DataFrame([event.model_dump()], schema=_SCHEMA))


def events(
    settings: Settings, usecase: str, *, target: ModelReference | str | None = None, action: str | None = None,
    since: datetime | None = None,
) -> list[HistoryEvent]:  # fmt: skip
    """Oldest first. `target`: NAME gives those of its versions, too; `since`: wall clock."""
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
