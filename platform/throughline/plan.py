"""What a `run` has to do, pure: from how the graph stands to what must be materialised.

Owns: the rule that only what changed is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from throughline.graph import AssetState, Key


@dataclass(frozen=True)
class Plan:
    """Assets to materialise, and for the daily ones among them the range of days (inclusive)."""

    assets: list[Key]
    days: tuple[date, date] | None

    def __bool__(self) -> bool:
        return bool(self.assets)


def plan_run(states: Sequence[AssetState], first: date, until: date) -> Plan:
    """Everything missing or stale, everything downstream of it, and the days in [first, until) that are not there.

    A stale daily table is brought anew for all of its days: its source's code changed.
    """
    wanted = [first + timedelta(days=n) for n in range((until - first).days)]
    days: set[date] = set()
    changed: set[Key] = set()
    for state in states:
        if state.partitions is None:
            if state.status != "FRESH":
                changed.add(state.key)
            continue
        missing = wanted if state.status == "STALE" else [d for d in wanted if d.isoformat() not in state.partitions]
        if missing:
            changed.add(state.key)
            days.update(missing)
    downstream = _downstream(states, changed)
    assets = sorted(state.key for state in states if state.key in downstream)
    return Plan(assets, (min(days), max(days)) if days else None)


def _downstream(states: Iterable[AssetState], changed: set[Key]) -> set[Key]:
    """`changed` and all that depends on it, directly or not."""
    reached = set(changed)
    grew = True
    while grew:
        more = {state.key for state in states if state.key not in reached and state.upstream & reached}
        reached |= more
        grew = bool(more)
    return reached
