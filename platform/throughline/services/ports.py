"""Ports for further homes on one machine.

Owns: which process of this machine may use which ports below the ephemeral range. A process holds the lock of a block
of ports until it ends, so that two processes never choose the same. Does not own: the default ports.
"""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import try_lock
from throughline.foundation.settings import DEFAULT_PORTS

# below the range that Linux gives to outgoing connections
FIRST, LAST = 24000, 32700
BLOCK = 50

_locks: list[BinaryIO] = []  # open until this process ends
_held: dict[int, range] = {}  # process id -> what is left of the block that it took last


def take_ports(count: int = len(DEFAULT_PORTS)) -> int:
    """The first of `count` consecutive loopback ports that no other process takes before this one ends.

    Nobody listens on them now, and no later call of this process returns them again.
    """
    left = _held.get(os.getpid(), range(0))
    while True:
        for base in range(left.start, left.stop - count + 1):
            if _unused(range(base, base + count)):
                _held[os.getpid()] = range(base + count, left.stop)
                return base
        left = _take_block()


def _take_block() -> range:
    folder = Path(tempfile.gettempdir()) / f"throughline-ports-{os.getuid()}"
    for base in range(FIRST, LAST, BLOCK):
        if lock := try_lock(folder / f"{base}.lock"):
            _locks.append(lock)
            return range(base, base + BLOCK)
    raise ThroughlineError(f"No ports are left between {FIRST} and {LAST}: end the processes that hold {folder}.")


def _unused(ports: range) -> bool:
    with ExitStack() as probes:
        for port in ports:
            probe = probes.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
