"""The files of a home's outboxes: segments of lines, the cursor of what was shipped, what was set aside.

    ROOT/WORKER/00000000000000000123.jsonl   lines; the name is the number of its first line, counted since ever
    ROOT/set-aside.jsonl                     lines that can never be delivered, each with its reason
    ROOT/shipping.json                       counts of the shipping process and its cursor in each folder

Owns: names and formats. Does not own: who writes (`outbox.py`) and who ships (`shipping.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from throughline.foundation.files import write_atomic

STATUS = "shipping.json"


@dataclass(frozen=True)
class Cursor:
    """The next line to ship: its number, and where it begins in the segment of that name."""

    segment: int
    offset: int
    line: int


@dataclass
class ShippingStatus:
    """What a shipping process has done since the outboxes were made; `failure` holds while the collector does not
    take events: what happened, and since when."""

    sent: int = 0
    set_aside: int = 0
    failure: dict[str, str] | None = None
    cursors: dict[str, Cursor] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        write_atomic(root / STATUS, json.dumps(asdict(self)))


def read_status(root: Path) -> ShippingStatus:
    """The status that the shipping process wrote last; an empty one before the first, or when it is damaged."""
    try:
        read: dict[str, Any] = json.loads((root / STATUS).read_bytes())
        cursors = {
            name: Cursor(int(each["segment"]), int(each["offset"]), int(each["line"]))
            for name, each in read["cursors"].items()
        }
        failure = {name: str(read["failure"][name]) for name in ("what", "since")} if read["failure"] else None
        return ShippingStatus(int(read["sent"]), int(read["set_aside"]), failure, cursors)
    except FileNotFoundError:
        return ShippingStatus()
    except (ValueError, TypeError, KeyError, AttributeError):  # a power loss: everything is shipped again, once by id
        return ShippingStatus()


def unsent(root: Path) -> bool:
    """Whether any outbox holds something that was not shipped."""
    cursors = read_status(root).cursors
    for folder in (path for path in root.glob("*/") if path.is_dir()):
        cursor = cursors.get(folder.name, Cursor(-1, 0, 0))
        for first in segments(folder):
            done = cursor.offset if first == cursor.segment else 0
            if first >= cursor.segment and segment_path(folder, first).stat().st_size > done:
                return True
    return False


def segments(folder: Path) -> list[int]:
    """The numbers of the first lines of the segments, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdecimal())


def segment_path(folder: Path, first_line: int) -> Path:
    return folder / f"{first_line:020d}.jsonl"
