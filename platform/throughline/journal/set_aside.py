"""Lines that can never be written, kept in a file with their reasons.

Owns: `set-aside.jsonl` of a folder. Does not own: which lines these are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

FILE = "set-aside.jsonl"
LIMIT = 64 << 20  # bytes; beyond it lines are counted and their reasons logged only


class SetAside:
    """One JSON object a line: `at` (UTC, wall clock), `reason`, `line`, and what else describes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.count = self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def add(self, lines: Sequence[tuple[bytes, str]], **described: str) -> None:
        """Append lines with their reasons, fsynced. Raises `OSError` when the disk refuses; then none was added."""
        at = datetime.now(UTC).isoformat()
        entries = [
            {"at": at, **described, "reason": reason, "line": line.decode(errors="replace")} for line, reason in lines
        ]
        with self.path.open("ab", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            if length <= LIMIT:
                content = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
                try:
                    if file.write(content) != len(content):
                        raise OSError("only part of the lines was written")
                    os.fsync(file.fileno())
                except OSError:
                    os.ftruncate(file.fileno(), length)
                    raise
        self.count += len(lines)
