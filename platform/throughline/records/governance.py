"""Decisions about model versions, and the events of their history."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Literal

from pydantic import Field

from throughline.foundation.references import ModelReference
from throughline.records.base import ModelFileRecord, Record

HistoryAction = Literal["registered", "decided", "approved", "champion", "withdrawn", "refused", "rollout", "note"]


class RuleVerdict(Record):
    """One rule of a gate; `cannot_say` counts as a failure."""

    rule: str
    verdict: Literal["pass", "fail", "cannot_say"]
    value: float | None
    bound: str
    where: str = Field("", description="Which of several the number is of: a slice, a check, a column.")

    def __str__(self) -> str:
        number = "" if self.value is None or math.isnan(self.value) else f"{self.value:.4f}"
        details = ", ".join(part for part in (number, self.where, self.bound) if part)
        return f"{self.rule} {self.verdict.replace('_', ' ')} ({details})"


class GateDecision(ModelFileRecord):
    """The decision to release one model version, with its reasons. `wait`: only an approval is missing."""

    decision: Literal["release", "wait", "reject"]
    decided_at: datetime
    rules: list[RuleVerdict]
    compared_with: ModelReference | None = Field(None, description="Champion of the evaluation, if any.")

    @property
    def reasons(self) -> str:
        return "; ".join(str(rule) for rule in self.rules)

    @property
    def failures(self) -> str:
        """The rules that did not pass, as one line."""
        return "; ".join(str(rule) for rule in self.rules if rule.verdict != "pass")


class HistoryEvent(Record):
    """Something done to a model version: never changed, never removed. `at` is the wall clock's."""

    id: str = Field(description="Equal for a repetition of the same event.")
    at: datetime
    actor: str = Field(description="Who did it: a user's name, or `graph` for the platform itself.")
    action: HistoryAction
    target: str = Field(description="NAME/VERSION, or NAME for what concerns the model.")
    old: str | None = None
    new: str | None = None
    reason: str = ""
