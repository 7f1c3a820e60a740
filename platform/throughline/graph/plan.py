"""What `throughline run` has to materialise, from the state of the assets: pure.

Owns: the rules that only what changed is made again, and that newer data by itself trains no model. Does not own: when
a model is retrained (`monitoring/triggers.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from throughline.foundation.days import between
from throughline.graph.client import AssetState, Key

RELEASE_ROOMS = frozenset({"training", "evaluation", "deployment"})
SUBMITTED_ROOMS = frozenset({"experiments", "batch"})  # materialised on request: trainings, batch scores


@dataclass(frozen=True)
class Plan:
    """Assets to materialise, and for the daily ones among them the range of days (inclusive)."""

    assets: list[Key]
    days: tuple[date, date] | None

    def __bool__(self) -> bool:
        return bool(self.assets)


def plan_run(states: Sequence[AssetState], first: date, until: date, behind: frozenset[str] = frozenset()) -> Plan:
    """What is missing or whose code changed with all that follows, and the days in [first, until) that are not there.

    A daily table whose source's code changed is made again for all of its days. New days and newer data are followed
    up to the training room: they make new features, but no new candidate.

    `behind`: rooms whose newest day is before `until`, as after a run that ended between a new day's rows and its
    features. Dagster calls those features fresh: they depend on a table, not on its days.
    """
    states = [state for state in states if state.group not in SUBMITTED_ROOMS]
    wanted = between(first, until)
    days: set[date] = set()
    changed: set[Key] = set()
    newer: set[Key] = set()
    for state in states:
        if state.partitions is None:
            if state.status == "MISSING" or "CODE" in state.causes:
                changed.add(state.key)
            elif state.group in behind or (state.status == "STALE" and state.group not in RELEASE_ROOMS):
                newer.add(state.key)
            continue
        missing = wanted if state.status == "STALE" else [d for d in wanted if d.isoformat() not in state.partitions]
        if missing:
            (changed if len(missing) == len(wanted) else newer).add(state.key)
            days.update(missing)
    planned = _followed(states, changed) | _followed(states, newer, closed=RELEASE_ROOMS)
    return Plan(sorted(planned), (min(days), max(days)) if days else None)


def _followed(states: Iterable[AssetState], start: set[Key], closed: frozenset[str] = frozenset()) -> set[Key]:
    """`start` and all that follows from it, directly or not, through rooms that are not closed."""
    reached = set(start)
    grew = bool(start)
    while grew:
        more = {s.key for s in states if s.key not in reached and s.group not in closed and s.upstream & reached}
        reached |= more
        grew = bool(more)
    return reached
