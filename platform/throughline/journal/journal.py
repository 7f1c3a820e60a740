"""A journal of lines on disk, in segments: append, seal, read, remove.

Owns: the files of one folder, used by one process at a time. Does not own: what a line means, when it may be removed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import try_lock

SEGMENT_LINES = 2000


class Journal:
    """Append-only segments in `folder`, oldest first; one is open, the others are sealed. Thread-safe.

    After `append` a line survives the end of this process; with `sync`, that of the machine.
    """

    def __init__(self, folder: Path) -> None:
        held = try_lock(folder / "lock")
        if held is None:
            raise ThroughlineError(f"{folder} is in use by another process: stop it, or use another THROUGHLINE_HOME.")
        self._held = held
        self._folder = folder
        self._lock = threading.Lock()
        self._sealed = sorted(path for path in folder.glob("*.jsonl") if path.stem.isdecimal())
        self._number = int(self._sealed[-1].stem) if self._sealed else 0
        self._open: BinaryIO | None = None
        self._length = 0  # of the open segment: the position of the file may lie behind its end after a failed write
        self._open_lines = 0

    def append(self, lines: Iterable[bytes], sync: bool = False) -> None:
        """Add lines (without line ends). Raises `OSError` when the disk refuses; then none may be relied on."""
        with self._lock:
            if self._open is None:
                # Unbuffered: a killed process loses nothing that was appended.
                self._open = (self._folder / f"{self._number + 1:012d}.jsonl").open("ab", buffering=0)
                self._number += 1
                self._length = self._open_lines = 0
            content = b"".join(line + b"\n" for line in lines)
            try:
                if self._open.write(content) != len(content):
                    raise OSError(errno.ENOSPC, "only part of the lines was written")
                if sync:
                    os.fsync(self._open.fileno())
            except OSError:
                self._take_back()
                raise
            self._length += len(content)
            self._open_lines += content.count(b"\n")
            if self._open_lines >= SEGMENT_LINES:
                self._seal()

    def sealed(self) -> list[Path]:
        """Seal what is open, then all sealed segments, oldest first."""
        with self._lock:
            self._seal()
            return list(self._sealed)

    @staticmethod
    def read(segment: Path) -> list[bytes]:
        """Lines of a sealed segment, without a last one that a crash cut short (it was never confirmed)."""
        *lines, _ = segment.read_bytes().split(b"\n")
        return lines

    def remove(self, segment: Path) -> None:
        """Delete a sealed segment, all of whose lines were processed."""
        with self._lock:
            segment.unlink(missing_ok=True)
            self._sealed.remove(segment)

    def close(self) -> None:
        with self._lock:
            self._seal()
            self._held.close()

    def _take_back(self) -> None:
        """Cut off what a failed append left, and begin another segment: a reader leaves out half a line at its end, so
        that nothing is ever joined to it, even where the disk refuses the cut."""
        assert self._open is not None
        with suppress(OSError):
            os.ftruncate(self._open.fileno(), self._length)
        if self._length:
            self._seal()
        else:
            self._open.close()
            Path(self._open.name).unlink(missing_ok=True)
            self._open = None

    def _seal(self) -> None:
        if self._open is not None:
            self._sealed.append(Path(self._open.name))
            self._open.close()
            self._open, self._open_lines = None, 0
