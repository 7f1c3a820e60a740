"""The outbox of a serving process: each prediction is a line on disk before its caller has the answer.

Owns: sequence numbers per start, one write per request, the limit of disk space, the count of lost events.
Does not own: sending (`shipping.py`, another process), the form of an event (`cloudevent.py`).

A line is written unbuffered and not fsynced: it survives the end of the process, not that of the machine.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from throughline.events import spool
from throughline.events.cloudevent import encode
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import try_lock

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 << 20
OUTBOX_LIMIT = 1 << 30  # bytes on disk; beyond it events are dropped and counted as lost
REPORT_S = 10.0  # losses are logged at most this often


class Outbox:
    """Appends events to segments in `folder`, which one process uses at a time; thread-safe.

    `publish` never raises and never waits for the network. An event that cannot be kept leaves a gap in the sequence
    numbers of its source, by which readers of the log see that it is incomplete.
    """

    def __init__(self, folder: Path, source: str | None = None) -> None:
        held = try_lock(folder / "lock")
        if held is None:
            raise ThroughlineError(f"{folder} is in use by another process: stop it, or use another THROUGHLINE_HOME.")
        self._held = held
        self._folder = folder
        self.source = source or f"urn:throughline:server:{uuid.uuid4()}"
        self.lost = 0
        self._lock = threading.Lock()
        self._sequence = 0
        first, *_ = found = spool.segments(folder) or [0]
        self._first = first
        last = spool.segment_path(folder, found[-1])
        self._next = found[-1] + (last.read_bytes().count(b"\n") if last.exists() else 0)
        self._file: BinaryIO | None = None
        self._length = 0
        self._full_until = self._reported = float("-inf")

    @property
    def shipped(self) -> spool.ShippingStatus:
        """What the shipping process has done, with all outboxes of this home."""
        return spool.read_status(self._folder.parent)

    @property
    def waiting(self) -> int:
        """Events in this folder, also of earlier starts, that the collector has not confirmed."""
        cursor = self.shipped.cursors.get(self._folder.name)
        return max(0, self._next - (self._first if cursor is None else cursor.line))

    def publish(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Log the predictions of one request by one write; each has the fields of `InferenceEvent` but source and
        sequence."""
        with self._lock:
            lines = []
            for event in events:
                self._sequence += 1
                try:
                    lines.append(encode(event, self.source, self._sequence))
                except (TypeError, KeyError) as error:
                    self._lose(1, f"it cannot be written as JSON ({error})")
            if lines and not self._full():
                self._append(lines)
            elif lines:
                self._lose(len(lines), f"{self._folder} holds {OUTBOX_LIMIT >> 20} MiB that were not sent: see the log")

    def close(self) -> None:
        with self._lock:
            self._seal()
            self._held.close()

    def _append(self, lines: list[bytes]) -> None:
        content, written, problem = b"\n".join([*lines, b""]), 0, "only a part was written"
        try:
            if self._file is None:
                path = spool.segment_path(self._folder, self._next)
                path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
                self._file = path.open("ab", buffering=0)
                self._length = path.stat().st_size
                if self._length:  # a part of a line, from a write that failed: made invalid, so that it is set aside
                    content = b"\0\n" + content
            written = self._file.write(content)
        except OSError as error:
            problem = str(error)
        self._length += written
        self._next += content.count(b"\n", 0, written)
        if written < len(content):
            missing = content.count(b"\n", written)
            self._lose(min(missing, len(lines)), f"{problem}: free disk space")
            self._seal()  # readers leave out half a line at the end of a segment
        elif self._length >= SEGMENT_BYTES:
            self._seal()

    def _seal(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _full(self) -> bool:
        """Whether the limit is reached: looked at for each new segment, and once a second while it is reached."""
        now = time.monotonic()
        if self._file is None or self._full_until > float("-inf"):
            if now < self._full_until:
                return True
            held = sum(_size(spool.segment_path(self._folder, first)) for first in spool.segments(self._folder))
            self._full_until = now + 1 if held > OUTBOX_LIMIT else float("-inf")
        return self._full_until > float("-inf")

    def _lose(self, events: int, reason: str) -> None:
        if not events:
            return
        self.lost += events
        now = time.monotonic()
        if now >= self._reported + REPORT_S:
            self._reported = now
            log.error("%d events lost since the start. The last: %s.", self.lost, reason)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # shipped meanwhile
        return 0
