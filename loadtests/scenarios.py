"""The scenarios: what load is made, what goes on beside it, and which levels hold under it.

Owns: rates, lengths, bounds. Arrival is open: requests are due at drawn instants, whatever the server does. At most
`clients` are under way at a time; a request that finds all of them busy waits, and its waiting counts.
The levels are those of two cores that server, collector and load share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from loadtests.arrivals import Phase, scaled
from loadtests.levels import Latencies, Levels

CLIENTS = 64
WARM_UP_S = 2.0  # at the start of a process, not measured: connections, the client's code and the server's caches

_ONE_ROW = {1: Latencies(p50_ms=8, p95_ms=50, p99_ms=100)}


@dataclass(frozen=True)
class Scenario:
    """`rows`: instances per request, in turn; `beside`: what else happens to the server meanwhile; `short`: part of
    `make loadtest`, the others are drills."""

    name: str
    about: str
    phases: tuple[Phase, ...]
    levels: Levels
    rows: tuple[int, ...] = (1,)
    beside: Literal["bad clients", "switches"] | None = None
    switches: int = 0
    clients: int = CLIENTS
    short: bool = True

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    def scaled(self, peak_rate: float | None, seconds: float | None, clients: int | None) -> Scenario:
        """With another load than declared; its levels stay."""
        return replace(self, phases=scaled(self.phases, peak_rate, seconds), clients=clients or self.clients)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steady", "the same rate throughout", (Phase(9, 100),), Levels(_ONE_ROW)),
        Scenario(
            "spike",
            "four times the rate at once, and back",
            (Phase(2, 60), Phase(2, 240), Phase(2, 60)),
            Levels({1: Latencies(p50_ms=15, p95_ms=150, p99_ms=300)}),
        ),
        Scenario(
            "rollout",
            "the served revision is switched again and again under load",
            (Phase(6, 80),),
            Levels({1: Latencies(p50_ms=10, p95_ms=100, p99_ms=200)}),
            beside="switches",
            switches=5,
        ),
        Scenario(
            "bad-clients",
            "malformed, oversize, slow, half-closed, pipelined and disconnecting clients beside good ones",
            (Phase(6, 80),),
            Levels({1: Latencies(p50_ms=10, p95_ms=80, p99_ms=150)}),
            beside="bad clients",
        ),
        Scenario(
            "batch",
            "requests of 1, 10 and 100 rows in turn",
            (Phase(6, 30),),
            Levels(
                {
                    1: Latencies(p50_ms=15, p95_ms=80, p99_ms=150),
                    10: Latencies(p50_ms=15, p95_ms=80, p99_ms=150),
                    100: Latencies(p50_ms=40, p95_ms=120, p99_ms=250),
                }
            ),
            rows=(1, 10, 100),
        ),
        Scenario(
            "ramp",
            "from a little to more than the steady rate",
            (Phase(60, 10, 240),),
            Levels({1: Latencies(p50_ms=10, p95_ms=80, p99_ms=150)}),
            short=False,
        ),
        Scenario(
            "soak",
            "ten minutes at a steady rate; the server's memory stays flat",
            (Phase(600, 80),),
            Levels(_ONE_ROW, memory_mb_per_min=1.0),
            short=False,
        ),
    )
}
