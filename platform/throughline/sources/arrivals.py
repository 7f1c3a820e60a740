"""What has arrived since somebody looked last, and which days must therefore be brought: the policy, pure.

Owns: what was seen, what is still to be brought, and when to try again or give up. Does not own: looking (`source.py`),
or runs (`assets/arrivals.py`). Days are local; only a day that has ended, by the data clock, can be brought.

One request at a time, of days that follow each other. What arrives while it runs is remembered and comes after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from datetime import date
from typing import Literal

from pydantic import Field

from throughline.foundation.days import spans, through
from throughline.records import Record

ATTEMPTS = 3

Outcome = Literal["succeeded", "failed", "under_way", "never_started"]


class Request(Record):
    """Days [first, last] that are to be brought; `key` is another for every request and attempt."""

    first: date
    last: date
    key: str
    attempt: int = 1


class Part(Record):
    """A part of a source as it was seen: its stamp, and the days its rows are of."""

    stamp: str
    days: list[date]


class Seen(Record):
    """What is remembered between two looks, some 100 bytes for each part."""

    parts: dict[str, Part] = Field(default_factory=dict)
    wanted: list[date] = Field(default_factory=list)
    request: Request | None = None
    given_up: list[date] = Field(default_factory=list)
    number: int = 0


def changed(seen: Seen, parts: Mapping[str, str]) -> list[str]:
    """The parts that are new, or have another stamp than before."""
    return [name for name, stamp in parts.items() if name not in seen.parts or seen.parts[name].stamp != stamp]


def decide(
    seen: Seen,
    parts: Mapping[str, str],
    arrived: Mapping[str, Collection[date]],
    outcome: Outcome | None,
    first: date,
    until: date,
    there: Collection[date] = (),
) -> tuple[Seen, Request | None]:
    """What is remembered from now on, and what to launch now.

    arrived: the days of the changed parts; what they held before is brought again, too, as they may hold it no more.
    outcome: of `seen.request`. first, until: days that can be brought at all. there: at the first look of all, the days
    that are believed to hold what stands there.
    """
    known_before = {day for name in arrived if name in seen.parts for day in seen.parts[name].days}
    # the first day also holds what became known before it
    news = {max(day, first) for day in known_before.union(*arrived.values())}
    news -= set(there)
    wanted, given_up = news | set(seen.wanted), set(seen.given_up) - news
    held = {
        name: Part(stamp=stamp, days=sorted(arrived[name])) if name in arrived else seen.parts[name]
        for name, stamp in parts.items()
    }
    request, launch, number = seen.request, None, seen.number
    if request is not None and outcome == "never_started":
        launch = request
    elif request is not None and outcome == "failed" and request.attempt < ATTEMPTS:
        launch = request = _request(held, number, request.first, request.last, request.attempt + 1)
    elif request is not None and outcome != "under_way":
        if outcome == "failed":
            given_up |= set(through(request.first, request.last)) - wanted
        request = None
    if request is None and (ready := {day for day in wanted if day < until}):
        begin, end = spans(ready)[0]
        number += 1
        launch = request = _request(held, number, begin, end)
        wanted -= set(through(begin, end))
    now = Seen(parts=held, wanted=sorted(wanted), request=request, given_up=sorted(given_up), number=number)
    return now, launch


def _request(held: Mapping[str, Part], number: int, first: date, last: date, attempt: int = 1) -> Request:
    stamps = "\n".join(f"{name} {part.stamp}" for name, part in sorted(held.items()))
    digest = hashlib.sha256(stamps.encode()).hexdigest()[:12]
    return Request(first=first, last=last, key=f"{digest}-{number}-{attempt}", attempt=attempt)
