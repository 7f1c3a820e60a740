"""Ports for a home of its own, beside those that run already."""

from __future__ import annotations

import contextlib
import socket

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS

# below the range that Linux gives to outgoing connections
FIRST, LAST = 24000, 32700


def free_ports(count: int = len(DEFAULT_PORTS), first: int = FIRST) -> int:
    """The first of `count` consecutive loopback ports, at or after `first`, that nobody listens on now."""
    for base in range(first, LAST - count, 50):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(base, base + count):
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return base
    raise ThroughlineError(f"No {count} consecutive ports are free between {first} and {LAST}: end what listens there.")
