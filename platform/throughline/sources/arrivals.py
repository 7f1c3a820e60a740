"""The policy of arrivals: which days must be ingested because parts of a source are new or changed; pure.

Owns: what was seen, which days are still to be ingested, retries. Does not own: listing the parts (`source.py`), runs
(`assets/arrivals.py`). Days are local and have ended by the data clock. There is one request at a time, of consecutive
days; what arrives while it runs is ingested by a later one.
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

RunState = Literal["succeeded", "failed", "under_way", "never_started"]


class Request(Record):
    """Days [first, last] to ingest; `key` differs for every request and attempt."""

    first: date
    last: date
    key: str
    attempt: int = 1


class Part(Record):
    """A part of a source as it was seen: its stamp, and the days of its rows."""

    stamp: str
    days: list[date]


class Seen(Record):
    """The state between two ticks, some 100 bytes per part."""

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
    state: RunState | None,
    first: date,
    until: date,
    ingested: Collection[date] = (),
) -> tuple[Seen, Request | None]:
    """The next state, and the request to launch now, if any.

    arrived: the days of the changed parts; the days they had before are ingested again: rows may be gone. state: of the
    run of `seen.request`. first, until: the days that can be ingested. ingested: at the first tick, the days that
    are ingested already.
    """
    known_before = {day for name in arrived if name in seen.parts for day in seen.parts[name].days}
    # the first day also holds what became known before it
    news = {max(day, first) for day in known_before.union(*arrived.values())}
    news -= set(ingested)
    wanted, given_up = news | set(seen.wanted), set(seen.given_up) - news
    held = {
        name: Part(stamp=stamp, days=sorted(arrived[name])) if name in arrived else seen.parts[name]
        for name, stamp in parts.items()
    }
    request, launch, number = seen.request, None, seen.number
    if request is not None and state == "never_started":
        launch = request
    elif request is not None and state == "failed" and request.attempt < ATTEMPTS:
        launch = request = _request(held, number, request.first, request.last, request.attempt + 1)
    elif request is not None and state != "under_way":
        if state == "failed":
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
