"""When requests are due: a Poisson process whose rate is declared in phases. Pure.

Owns: the instants. They are drawn before anything is sent and do not depend on the server: a server that is slow does
not get fewer requests, and the time a request waits to be sent counts (no coordinated omission).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """`seconds` in which the rate (requests per second) goes in a straight line from `rate` to `until`."""

    seconds: float
    rate: float
    until: float | None = None

    @property
    def end_rate(self) -> float:
        return self.rate if self.until is None else self.until

    @property
    def expected(self) -> float:
        """Requests that are due in this phase on average."""
        return self.seconds * (self.rate + self.end_rate) / 2

    def offset(self, requests: float) -> float:
        """Seconds after the start of the phase at which `requests` are due on average; 0 <= requests <= expected."""
        slope = (self.end_rate - self.rate) / self.seconds
        # the root of rate * t + slope * t^2 / 2 = requests, in the form that also holds for slope 0
        root = math.sqrt(max(0.0, self.rate * self.rate + 2 * slope * requests))
        return min(self.seconds, 2 * requests / (self.rate + root)) if requests > 0 else 0.0


def due(phases: Sequence[Phase], seed: int) -> Iterator[float]:
    """Seconds after the start at which requests are due, ascending."""
    draw = random.Random(seed)
    position, begun, start = draw.expovariate(1.0), 0.0, 0.0
    for phase in phases:
        while position < begun + phase.expected:
            yield start + phase.offset(position - begun)
            position += draw.expovariate(1.0)
        begun += phase.expected
        start += phase.seconds


def peak(phases: Sequence[Phase]) -> float:
    """The highest rate, in requests per second."""
    return max(max(phase.rate, phase.end_rate) for phase in phases)


def scaled(phases: Sequence[Phase], peak_rate: float | None = None, seconds: float | None = None) -> tuple[Phase, ...]:
    """The same course with another peak rate, another length, or both."""
    by_rate = 1.0 if peak_rate is None else peak_rate / peak(phases)
    by_time = 1.0 if seconds is None else seconds / sum(phase.seconds for phase in phases)
    return tuple(
        Phase(phase.seconds * by_time, phase.rate * by_rate, None if phase.until is None else phase.until * by_rate)
        for phase in phases
    )
