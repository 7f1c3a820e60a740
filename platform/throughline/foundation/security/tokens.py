"""Bearer tokens, demanded by a service that other machines can call.

Owns: when a token is demanded, and its comparison. Does not own: TLS, which ends in front of the services.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from throughline.foundation.settings import Settings, is_loopback

REFUSAL = "Authorization: send the header 'Authorization: Bearer TOKEN' with the token of this home"


def demanded_token(settings: Settings) -> str | None:
    """The token callers must show, or None when only this machine can call."""
    if is_loopback(settings.bind) or settings.token is None:
        return None
    return settings.token.get_secret_value()


def auth_headers(settings: Settings) -> dict[str, str]:
    """Headers that clients of this home send."""
    return {"Authorization": f"Bearer {settings.token.get_secret_value()}"} if settings.token else {}


def allowed(token: str | None, authorization: str | bytes | None) -> bool:
    """Whether the header holds the token, compared in constant time."""
    if token is None:
        return True
    shown = authorization.encode() if isinstance(authorization, str) else authorization or b""
    scheme, _, value = shown.partition(b" ")
    return hmac.compare_digest(value.strip(), token.encode()) and scheme.lower() == b"bearer"


class BearerToken:
    """ASGI middleware: 401 without the token, except on paths for which `exempt(path)` holds."""

    def __init__(self, app: ASGIApp, token: str | None, exempt: Callable[[str], bool]) -> None:
        self._app, self._token, self._exempt = app, token, exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._token is not None and not self._exempt(scope["path"]):
            shown = next((value for name, value in scope["headers"] if name == b"authorization"), None)
            if not allowed(self._token, shown):
                refusal = JSONResponse({"error": REFUSAL}, 401, {"WWW-Authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)
