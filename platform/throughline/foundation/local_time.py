"""Local time of many instants at once, in NumPy.

Owns: the offsets of a zone. The table of a zone is made when it is first needed, in a tenth of a second.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np

# Before and after these years a zone keeps the offset that it has there.
_FIRST, _LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
_EPOCH, _DAY, _SECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(days=1), timedelta(seconds=1)


def local_time(instants: np.ndarray, zone: str) -> np.ndarray:
    """Instants in UTC, datetime64[us] [rows] -> what clocks in `zone` show, datetime64[us] [rows]; NaT stays NaT.

    Raises `zoneinfo.ZoneInfoNotFoundError` for an unknown zone.
    """
    changes, offsets = _offsets(zone)
    return instants + offsets[np.searchsorted(changes, instants.view(np.int64), side="right")]


@cache
def _offsets(zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds since 1970 at which the offset changes, int64 [changes]; timedelta64[us] [changes + 1]."""
    place = ZoneInfo(zone)
    changes: list[int] = []
    offsets = [_offset(_FIRST, place)]
    day = _FIRST
    while day < _LAST:  # no zone changes twice in a day
        if _offset(day + _DAY, place) != offsets[-1]:
            low, high = day, day + _DAY
            while high - low > _SECOND:
                middle = low + (high - low) // 2 // _SECOND * _SECOND
                low, high = (middle, high) if _offset(middle, place) == offsets[-1] else (low, middle)
            changes.append((high - _EPOCH) // timedelta(microseconds=1))
            offsets.append(_offset(high, place))
        day += _DAY
    return np.array(changes, np.int64), np.array(offsets, "timedelta64[us]")


def _offset(instant: datetime, place: ZoneInfo) -> timedelta:
    offset = instant.astimezone(place).utcoffset()
    assert offset is not None
    return offset
