"""The id of a home, by which its services and their clients recognise each other.

Owns: the file that holds it, the header, the message when a server of another home answers. Does not own: where the
header is checked (`guard.py` in a service, `calls.py` in a client). The id is no secret and proves nothing: it prevents
mistakes, not attacks.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import locked, write_atomic

if TYPE_CHECKING:
    from throughline.foundation.settings import Settings

HEADER = "X-Throughline-Home"
FILE = "home-id"
MISDIRECTED = 421  # of a request for another home, and of one for a host that is not this service


def home_id(settings: Settings) -> str:
    """Made once per home, at random: 32 hexadecimal digits. Safe from several processes at once."""
    path = settings.home / FILE
    try:
        if not path.exists():
            with locked(settings.home / "locks" / FILE):
                if not path.exists():
                    write_atomic(path, uuid.uuid4().hex)
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ThroughlineError(f"{path} cannot be read or made ({error}): make the home writable.") from error
    if not re.fullmatch(r"[0-9a-f]{32}", found):
        raise ThroughlineError(
            f"{path} holds no id of a home: remove it and restart the services (`throughline down`)."
        )
    return found


def other_home(port: int | None, service: str, other: str) -> str:
    """The error of a client that was answered by a service of another home."""
    return (
        f"Port {port} is answered by the {service} of another home (id {other[:8]}): stop that one, or set "
        "THROUGHLINE_PORT_BASE to free ports."
    )


def misdirected(settings: Settings, port: int | None, status: int, headers: Mapping[str, str]) -> str | None:
    """Why a response is not from a service of this home; None when it is. `headers`: by name, in any case."""
    given = {name.lower(): value for name, value in headers.items()}.get(HEADER.lower())
    if given is None:
        return (
            f"Port {port} is answered by a program that is no service of this home (HTTP {status}): run "
            "`throughline down` and `up`; if that does not help, stop the program or set THROUGHLINE_PORT_BASE."
        )
    other, _, service = given.partition(" ")
    return None if other == home_id(settings) else other_home(port, service or "server", other)
