"""Calls to the services of this home: what a client sends, and the check that its own home answers.

Owns: the headers of such calls, the HTTP client of the platform. Does not own: what is called.
"""

from __future__ import annotations

from typing import Any

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.home import HEADER, home_id, misdirected
from throughline.foundation.security.tokens import auth_headers
from throughline.foundation.settings import Settings


def headers_of(settings: Settings, service: str) -> dict[str, str]:
    """Headers for a service of `DEFAULT_PORTS`: the token, and the home that is meant unless it is not ours."""
    home = {HEADER: home_id(settings)} if settings.is_local(service) else {}
    return {**auth_headers(settings), **home}


def client_of(settings: Settings, service: str, timeout_s: float = 60, **options: Any) -> httpx.Client:
    """A client of one service of this home, by paths; never through a proxy unless the service is elsewhere.

    Its requests raise `httpx.HTTPError`, and `ThroughlineError` in one line when another home or program answers.
    """
    local = settings.is_local(service)

    def require_own(response: httpx.Response) -> None:
        if problem := misdirected(settings, response.url.port, response.status_code, response.headers):
            raise ThroughlineError(problem)

    return httpx.Client(
        base_url=settings.url(service),
        headers=headers_of(settings, service),
        timeout=timeout_s,
        trust_env=not local,
        event_hooks={"response": [require_own] if local else []},
        **options,
    )
