"""The data clock (up to which instant the platform may use data) and the wall clock (the time of day).

Owns: reading and moving the data clock. Each policy names in its docstring which of the two it uses.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import write_atomic
from throughline.foundation.settings import Settings


class Clock(Protocol):
    """Gives the present instant; timezone-aware, in UTC."""

    def now(self) -> datetime: ...


class WallClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class ReplayClock:
    """A data clock kept in a file, moved by commands and never backwards. Until it is first moved it is at `start`."""

    def __init__(self, path: Path, start: datetime) -> None:
        self._path = path
        self._start = _utc(start)
        self._read: tuple[tuple[int, int], datetime] | None = None

    def now(self) -> datetime:
        # Each move replaces the file: a look at its number and time costs a twentieth of reading it.
        try:
            stat = os.stat(self._path)  # noqa: PTH116  # Path.stat takes twice as long
            seen = (stat.st_ino, stat.st_mtime_ns)
            if self._read is None or self._read[0] != seen:
                self._read = seen, _utc(datetime.fromisoformat(json.loads(self._path.read_text())["now"]))
        except FileNotFoundError:
            return self._start
        return self._read[1]

    def advance_to(self, instant: datetime) -> datetime:
        """Move to `instant` and return it in UTC. Raises when that is before the present."""
        instant = _utc(instant)
        now = self.now()
        if instant < now:
            raise ThroughlineError(
                f"The data clock stands at {now.isoformat()} and does not go back to {instant.isoformat()}: "
                "start a new home (THROUGHLINE_HOME) to replay from an earlier day."
            )
        write_atomic(self._path, json.dumps({"now": instant.isoformat()}))
        return instant


def data_clock(settings: Settings, start: datetime) -> Clock:
    """The data clock of this home: the wall clock in production, a replay from `start` otherwise."""
    if settings.clock == "wall":
        return WallClock()
    return ReplayClock(settings.home / "clock.json", start)


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ThroughlineError(f"{instant.isoformat()} has no time zone: give one, for example +00:00.")
    return instant.astimezone(UTC)
