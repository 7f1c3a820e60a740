"""What a caller sends, when a prediction is made, and the decision that follows from a score."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import Field

from throughline.usecase.base import Declared, Duration


class RequestField(Declared):
    type: Literal["string", "integer", "number", "timestamp"]
    nullable: bool = False
    example: Any = None


class Decision(Declared):
    """The two decisions and what a wrong one costs, in the same unit."""

    negative: str
    positive: str
    cost_false_positive: float = Field(gt=0)
    cost_false_negative: float = Field(gt=0)

    @property
    def threshold(self) -> float:
        """The score from which on the positive decision costs less (Elkan 2001, eq. 2; being right is free)."""
        return self.cost_false_positive / (self.cost_false_positive + self.cost_false_negative)

    def decide(self, score: float) -> str:
        return self.positive if score >= self.threshold else self.negative


class Prediction(Declared):
    """`tolerance`: a request this much earlier or later than the lead is flagged: models learned from the lead only."""

    time_field: str
    lead: Duration
    tolerance: Duration = timedelta(days=1)
    key: list[str]
    decision: Decision

    def is_timely(self, happens: datetime, now: datetime) -> bool:
        """Whether a prediction at `now` is made about the lead before what is predicted happens."""
        return abs(happens - now - self.lead) <= self.tolerance
