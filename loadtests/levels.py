"""The service levels, and the verdict on a run.

Owns: the levels and the load they hold under. Does not own: making the load (`scenario`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Levels:
    """Upper bounds, inclusive. They hold at 8 users of 10 requests per second each, on 2 cores shared with the load."""

    failed_share: float = 0.0
    p50_ms: float = 25.0
    p95_ms: float = 100.0
    events_lost: float = 0.0


@dataclass(frozen=True)
class Measured:
    requests: int
    seconds: float
    failed_share: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    events_lost: int

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


def missed(levels: Levels, measured: Measured) -> list[str]:
    """The levels that were not kept, each with figure and bound; a run without requests keeps none."""
    if measured.requests == 0:
        return ["no request was answered"]
    got = asdict(measured)
    return [f"{name} {got[name]:g} > {bound:g}" for name, bound in asdict(levels).items() if not got[name] <= bound]


def report(levels: Levels, measured: Measured) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        **asdict(measured),
        "per_second": measured.per_second,
        "levels": asdict(levels),
        "missed": missed(levels, measured),
    }
