"""Replacing a file as a whole, and locks between the processes of this machine."""

from __future__ import annotations

import fcntl
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_POLL_S = 0.2


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path`; its folder is created. A reader sees the old content or the new, never a part of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Generator[None]:
    """Hold an exclusive lock on `path`, created with its folder. While another process holds it, `waiting` is called
    several times a second; what it raises ends the wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if waiting is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            while not _lock(file):
                waiting()
                time.sleep(_POLL_S)
        yield


def try_lock(path: Path) -> BinaryIO | None:
    """The file that holds the lock on `path` until it is closed; None when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if _lock(file):
        return file
    file.close()
    return None


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
