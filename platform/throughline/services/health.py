"""Whether a service answers.

Owns: the three kinds of health check (`http://`, `tcp://`, `daemon+http://`). Does not own: what follows from one.
"""

from __future__ import annotations

import http.client
import json
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.home import HEADER, home_id, misdirected
from throughline.foundation.security.tokens import auth_headers
from throughline.foundation.settings import Settings

_DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } } }"
_SILENT_S = 150  # a Dagster daemon beats every 30 s; a busy machine may miss some

# never through a proxy
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def problem(check: str, settings: Settings, started: float, now: float, timeout_s: float = 3) -> str | None:
    """None when the service started at `started` (Unix seconds) is healthy, else why it is not."""
    try:
        if check.startswith("tcp://"):
            at = urlsplit(check)
            socket.create_connection((at.hostname, at.port), timeout=timeout_s).close()
            return None
        if check.startswith("daemon+"):
            return silent_daemons(_heartbeats(check.removeprefix("daemon+"), settings, timeout_s), started, now)
        with _open(check, settings, timeout_s):
            return None
    except ThroughlineError as error:
        return str(error)
    except urllib.error.HTTPError as error:
        answer = error.read(500).decode(errors="replace")
        return f"{check.removeprefix('daemon+')} answers {error.code} {answer}".rstrip()
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return f"{check.removeprefix('daemon+')} does not answer ({getattr(error, 'reason', None) or error})"


def get_json(url: str, settings: Settings, timeout_s: float = 3) -> object:
    """GET one of our own services. Raises OSError, HTTPException, ValueError or `ThroughlineError`."""
    with _open(url, settings, timeout_s) as answer:
        return json.load(answer)


def silent_daemons(heartbeats: dict[str, float | None], started: float, now: float) -> str | None:
    """Why Dagster's daemon is not well: a required part without a beat since `started`, or without a recent one."""
    silent = [name for name, beat in heartbeats.items() if beat is None or beat < started or now - beat > _SILENT_S]
    return f"no heartbeat of {', '.join(sorted(silent))}" if silent else None


def _heartbeats(url: str, settings: Settings, timeout_s: float) -> dict[str, float | None]:
    with _open(url, settings, timeout_s, json.dumps({"query": _DAEMONS}).encode()) as answer:
        rows = json.load(answer)["data"]["instance"]["daemonHealth"]["allDaemonStatuses"]
    return {row["daemonType"]: row["lastHeartbeatTime"] for row in rows if row["required"]}


def _open(url: str, settings: Settings, timeout_s: float, body: bytes | None = None) -> http.client.HTTPResponse:
    """Raises `ThroughlineError` when another home or program answers."""
    headers = {"Content-Type": "application/json", HEADER: home_id(settings), **auth_headers(settings)}
    port = urlsplit(url).port
    try:
        answer = _opener.open(urllib.request.Request(url, data=body, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if problem := misdirected(settings, port, error.code, dict(error.headers)):
            raise ThroughlineError(problem) from error
        raise
    if problem := misdirected(settings, port, answer.status, dict(answer.headers)):
        answer.close()
        raise ThroughlineError(problem)
    return answer
