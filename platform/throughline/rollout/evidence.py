"""Evidence about a rollout: what two revisions did between two looks, and its form. Pure.

Owns: counts, windows, differences of cumulative counts. Does not own: where counts come from (a target), what
follows from them (`judge.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from throughline.records import SCORE_BINS
from throughline.records.base import Record


class Counts(Record):
    """What one revision did, as cumulative counts or between two looks. Floats, as Prometheus gives them."""

    requests: float = 0
    errors: float = 0
    latency: tuple[float, ...] = ()  # answers by the bounds of the window's `latency_bounds`, the last one above all
    scores: tuple[float, ...] = ()  # answers by `SCORE_BINS` bins
    outcomes: float = 0  # predictions whose label became known
    loss: float = 0  # their Brier losses' sum

    def plus(self, more: Counts) -> Counts:
        return Counts(
            requests=self.requests + more.requests,
            errors=self.errors + more.errors,
            latency=_plus(self.latency, more.latency),
            scores=_plus(self.scores, more.scores),
            outcomes=self.outcomes + more.outcomes,
            loss=self.loss + more.loss,
        )

    def minus(self, before: Counts) -> Counts:
        """Since `before`. A histogram that `before` lacks had no entry then."""
        return Counts(
            requests=self.requests - before.requests,
            errors=self.errors - before.errors,
            latency=_minus(self.latency, before.latency),
            scores=_minus(self.scores, before.scores),
            outcomes=self.outcomes - before.outcomes,
            loss=self.loss - before.loss,
        )

    def fault(self) -> str | None:
        """Why these cannot be counts between two looks; None when they can."""
        numbers = {
            "requests": (self.requests,), "errors": (self.errors,), "outcomes": (self.outcomes,), "loss": (self.loss,),
            "latency": self.latency, "scores": self.scores,
        }  # fmt: skip
        for name, values in numbers.items():
            if not all(map(math.isfinite, values)):
                return f"{name} is not a number"
            if min(values, default=0) < 0:
                return f"{name} fell"
        if self.errors > self.requests:
            return "there are more errors than requests"
        return None


class Window(Record):
    """What stable and candidate did between two looks (wall clock), so at the same moments.

    `replayed`: logged requests were sent to both beside the live ones, because these were few.
    """

    start: datetime
    end: datetime
    latency_bounds: tuple[float, ...]  # seconds, rising, without infinity
    stable: Counts
    candidate: Counts
    replayed: bool = False

    def fault(self) -> str | None:
        """Why nothing can be concluded from this window; None when something can."""
        for role, counts in (("stable", self.stable), ("candidate", self.candidate)):
            if problem := counts.fault():
                return f"of {role}, {problem}"
            if counts.latency and len(counts.latency) != len(self.latency_bounds) + 1:
                return f"of {role}, latency has {len(counts.latency)} bins for {len(self.latency_bounds)} bounds"
            if counts.scores and len(counts.scores) != SCORE_BINS:
                return f"of {role}, scores have {len(counts.scores)} bins, not {SCORE_BINS}"
        return None


def _plus(one: Sequence[float], other: Sequence[float]) -> tuple[float, ...]:
    if not one or not other:
        return tuple(one or other)
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _minus(now: Sequence[float], before: Sequence[float]) -> tuple[float, ...]:
    """A histogram that is gone, or has other bins, is one that fell: its server has begun anew."""
    if before and len(now) != len(before):
        return tuple(-count for count in before)
    return tuple(a - b for a, b in zip(now, before or [0.0] * len(now), strict=True))
