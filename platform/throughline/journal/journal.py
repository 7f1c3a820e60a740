"""A journal of lines on disk, in segments: append, seal, read, remove.

Owns: the files of one folder, used by one process at a time. Does not own: what a line means, when it may be removed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
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
        self._sealed = sorted(folder.glob("*.jsonl"))
        self._number = int(self._sealed[-1].stem) if self._sealed else 0
        self._open: BinaryIO | None = None
        self._open_lines = 0
        self.size = sum(path.stat().st_size for path in self._sealed)

    def append(self, lines: Iterable[bytes], sync: bool = False) -> None:
        """Add lines (without line ends). Raises `OSError` when the disk refuses; then none may be relied on."""
        with self._lock:
            if self._open is None:
                self._number += 1
                # Unbuffered: a killed process loses nothing that was appended.
                self._open = (self._folder / f"{self._number:012d}.jsonl").open("ab", buffering=0)
            content = b"".join(line + b"\n" for line in lines)
            start = self._open.tell()
            try:
                if self._open.write(content) != len(content):
                    raise OSError("only part of the lines was written")
            except OSError:
                self._open.truncate(start)
                raise
            self.size += len(content)
            self._open_lines += content.count(b"\n")
            if sync:
                os.fsync(self._open.fileno())
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
            self._sealed.remove(segment)
            self.size -= segment.stat().st_size
            segment.unlink()

    def close(self) -> None:
        with self._lock:
            self._seal()
            self._held.close()

    def _seal(self) -> None:
        if self._open is not None:
            self._sealed.append(Path(self._open.name))
            self._open.close()
            self._open, self._open_lines = None, 0
