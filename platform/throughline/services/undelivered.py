"""Events and rows on their way to a table that wait or were set aside, as troubles of the home.

Owns: which of them are shown, and the command that shows more. Does not own: the counts (the shipping process, the
collector).
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from throughline.events import spool
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.journal import set_aside
from throughline.services import health
from throughline.services.conf import log_path
from throughline.services.deployed import Trouble

_SILENT_S = 60  # a shipping process that cannot send writes why every few seconds


def undelivered(settings: Settings, collector_runs: bool) -> list[Trouble]:
    """In the order of an event's way: outbox, inference log; then reported outcomes and pushed rows."""
    found = list(_outboxes(settings))
    if collector_runs:
        try:
            status: Any = health.get_json(f"{settings.local_url('collector')}/status", settings)
            spools = settings.serving_home / "spool"
            found += _intake(settings, "events", status, spools / "collector")
            found += _lost(settings, status["lost"])
            found += _intake(settings, "reported outcomes", status["feedback"], spools / "feedback")
            found += _intake(settings, "pushed rows", status["pushed"], spools / "sources")
        except (ThroughlineError, OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            found.append(Trouble(f"The collector does not report its state ({reason})", None, _log(settings)))
    return found


def _outboxes(settings: Settings) -> Iterator[Trouble]:
    shipping = spool.read_status(settings.outboxes)
    if shipping.failure:
        what = f"Events of the model server wait: {shipping.failure['what']}"
        yield Trouble(what, shipping.failure["since"], f"tail -n 20 {log_path(settings.home, 'model-server')}")
    elif (since := _abandoned(settings.outboxes)) is not None:
        yield Trouble("Events wait in the outbox, and no process sends them", since, "throughline up")
    if shipping.set_aside:
        what = f"{shipping.set_aside} events of the model server were refused for good and set aside"
        yield Trouble(what, None, _look(settings.outboxes))


def _abandoned(root: Path) -> str | None:
    """Since when nothing was sent though events wait; None while they are on their way."""
    if not spool.unsent(root):
        return None
    status = root / spool.STATUS
    sent_at = status.stat().st_mtime if status.exists() else root.stat().st_mtime
    return datetime.fromtimestamp(sent_at, UTC).isoformat() if time.time() - sent_at > _SILENT_S else None


def _intake(settings: Settings, what: str, status: Mapping[str, Any], folder: Path) -> Iterator[Trouble]:
    for problem in status["problems"]:
        yield Trouble(problem["what"].rstrip("."), problem.get("since"), _log(settings))
    if status["set_aside"]:
        yield Trouble(f"{status['set_aside']} {what} can never be written and were set aside", None, _look(folder))


def _lost(settings: Settings, events: int) -> Iterator[Trouble]:
    if events:
        what = f"{events} events are missing from the inference log, so nothing is concluded from it"
        yield Trouble(what, None, f"grep 'events lost' {log_path(settings.home, 'model-server')}")


def _look(folder: Path) -> str:
    return f"tail -n 5 {folder / set_aside.FILE}"


def _log(settings: Settings) -> str:
    return f"tail -n 20 {log_path(settings.home, 'collector')}"
