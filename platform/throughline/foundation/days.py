"""Ranges of days."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

DAY = timedelta(days=1)


def between(first: date, until: date) -> list[date]:
    """The days in [first, until)."""
    return [first + n * DAY for n in range((until - first).days)]


def through(first: date, last: date) -> list[date]:
    """The days in [first, last]."""
    return between(first, last + DAY)


def spans(days: Iterable[date]) -> list[tuple[date, date]]:
    """The ranges of consecutive days among `days`, as (first, last), in order."""
    held = set(days)
    firsts = sorted(day for day in held if day - DAY not in held)
    lasts = sorted(day for day in held if day + DAY not in held)
    return list(zip(firsts, lasts, strict=True))
