"""Whether the model server serves what was deployed, and having it loaded when it does not.

Owns: the comparison of the revisions on disk with those that serve, the request to load. Does not own: what is deployed
(`rollout/`), why a revision is refused (the model server), deploying it again (`rollout/promotion.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings
from throughline.records import RevisionSet
from throughline.rollout.revision import FILE, read_revisions
from throughline.services.conf import log_path

LOAD_TIMEOUT_S = 120


@dataclass(frozen=True)
class Trouble:
    """Something that a person has to do something about. `since`: ISO 8601, UTC; `command`: what mends it."""

    what: str
    since: str | None
    command: str


def not_served(
    settings: Settings,
    served: Iterable[Mapping[str, Any]],
    refusals: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Trouble]:
    """Use case -> what is deployed and not served. `served`, `refusals`: what the model server lists."""
    listed: dict[str, set[str]] = {}
    for one in served:
        listed.setdefault(str(one.get("usecase")), set()).add(str(one.get("revision")))
    found = {}
    for file in sorted(settings.serving_home.glob(f"*/{FILE}")):
        usecase = file.parent.name
        try:
            revisions = read_revisions(file.parent)
        except ThroughlineError as error:
            found[usecase] = Trouble(str(error).rstrip("."), None, "throughline run")
            continue
        if revisions and (what := difference(revisions, listed.get(usecase, set()))):
            refusal = refusals.get(usecase, {})
            reason = refusal.get("why", f"see {log_path(settings.home, 'model-server')}").rstrip(".")
            command = "throughline run" if reason.startswith("refused") else "throughline up"
            found[usecase] = Trouble(f"{what}: {reason}", refusal.get("since"), command)
    return found


def difference(revisions: RevisionSet, served: set[str]) -> str | None:
    """What is deployed and not served, in words; None when all is."""
    missing = [one for one in revisions.revisions if one.revision not in served]
    if not missing:
        return None
    named = ", ".join(f"{one.revision} ({one.model}, {one.role})" for one in missing)
    instead = f", {', '.join(sorted(served))} is" if served else ""
    return f"revision {named} of {revisions.usecase} is deployed, not served{instead}"


def load_deployed(settings: Settings, served: Iterable[Mapping[str, Any]]) -> dict[str, Trouble]:
    """Have the model server load what is deployed and not served. Returns by use case what it still does not serve."""
    from throughline.rollout.endpoint import error_of  # postpones polars

    left = {}
    for usecase, trouble in not_served(settings, served).items():
        try:
            with client_of(settings, "model_http", LOAD_TIMEOUT_S) as server:
                answer = server.post(f"/v2/repository/models/{usecase}/load")
            refusal = error_of(answer) if answer.is_error else None
        except (httpx.HTTPError, ThroughlineError) as error:
            refusal = str(error)
        if refusal is not None:
            what = trouble.what.partition(": ")[0]
            left[usecase] = Trouble(f"{what}: {refusal.rstrip('.')}", trouble.since, "throughline run")
    return left
