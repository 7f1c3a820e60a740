"""The guard in front of every HTTP service of a home: refuses requests of foreign hosts, origins and homes.

A web page may send requests to this machine's ports: without reading the answer from any origin (a POST needs no
preflight), and with reading it once the page's own host name resolves to 127.0.0.1 (DNS rebinding). Browsers name both,
in `Origin` (or `Sec-Fetch-Site`) and `Host`.
Owns: which hosts and origins are a service's own, the refusals. Does not own: tokens (`tokens.py`). gRPC needs no such
check: browsers cannot send it (no HTTP/2 without TLS, no access to trailers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from throughline.foundation.security.home import HEADER, MISDIRECTED, home_id, other_home
from throughline.foundation.settings import Settings, is_loopback

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(:\d{1,5})?")
_HEADERS = ("host", "origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", HEADER.lower())
_PLACES = {name.encode(): place for place, name in enumerate(_HEADERS)}
_ACCEPTED_LIMIT = 256


class Guard:
    """ASGI middleware, outermost in each service: 4xx with one line, or the response with the home's id in a header.

    On loopback a host is a loopback address, `localhost`, or named in the setting `hosts`. Beyond loopback, where a
    token is demanded that no web page has, it is any host unless `hosts` is set. An origin, where one is sent, is the
    service itself or a host of `hosts`. Of other sites a browser may only follow a link to a page: a GET for an image
    or a script has no Origin, and Dagster executes mutations in one.
    """

    def __init__(self, app: ASGIApp, settings: Settings, service: str, bind: str, port: int) -> None:
        """`service`: its name in messages; `bind`, `port`: where it listens."""
        self._app = app
        self._port = port
        self._home = home_id(settings)
        self._service = service
        self._names = settings.host_names
        self._any_host = not is_loopback(bind) and not self._names
        self._header = (HEADER.lower().encode(), f"{self._home} {service}".encode())
        self._accepted: set[tuple[bytes | None, ...]] = set()  # a client repeats its headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["headers"])
        if refusal is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1][:120]})
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._header]
            await send(message)

        if refusal is None:
            await self._app(scope, receive, marked)
        else:
            await JSONResponse({"error": refusal[1]}, refusal[0])(scope, receive, marked)

    def _refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Status and line of a refusal; None for a request that is this service's own."""
        given: list[bytes | None] = [None] * len(_HEADERS)
        for name, value in headers:
            place = _PLACES.get(name)
            if place is not None:
                given[place] = value if given[place] is None else b"\0"  # two are refused
        shown = tuple(given)
        if shown in self._accepted:
            return None
        judged = self._judge(*(None if value is None else value.decode("latin-1").lower() for value in shown))
        if judged is None and len(self._accepted) < _ACCEPTED_LIMIT:
            self._accepted.add(shown)
        return judged

    def _judge(
        self,
        host: str | None,
        origin: str | None,
        site: str | None,
        mode: str | None,
        dest: str | None,
        home: str | None,
    ) -> tuple[int, str] | None:
        name = host_name(host or "")
        if name is None:
            return 400, "Host: send one host name or address, with or without a port"
        if not (self._any_host or name in self._names or is_loopback(name)):
            return MISDIRECTED, (
                f"Host: {name[:100]} is not a name of this service: use 127.0.0.1 or localhost, or add it to "
                "THROUGHLINE_HOSTS"
            )
        if origin is not None and not self._own_origin(origin, host or ""):
            return 403, f"Origin: {ascii(origin)[1:-1][:100]} may not send requests here, it is another site"
        follows_link = (mode, dest) == ("navigate", "document")
        if origin is None and site not in (None, "none", "same-origin") and not follows_link:
            return 403, "Sec-Fetch-Site: a page of another site may not send requests here"
        if home is not None and home != self._home:
            return MISDIRECTED, other_home(self._port, self._service, self._home)
        return None

    def _own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            named = parts.hostname
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and (parts.netloc == host or named in self._names)


def host_name(host: str) -> str | None:
    """The name or address in a Host header (lower case), without port and brackets; None for what is no such header."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]") if found else None
