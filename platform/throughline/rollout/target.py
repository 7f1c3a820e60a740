"""What a rollout needs of the place where revisions serve.

Owns: the protocol of a target and the form of what it reports. Does not own: the targets (`local.py`, `kserve.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pydantic import Field

from throughline.foundation.errors import ThroughlineError
from throughline.records import ModelRecord, RevisionSet
from throughline.records.base import Record
from throughline.records.deployment import Role
from throughline.rollout.evidence import Counts
from throughline.usecase import UseCase

PRODUCTION, SHADOW = "production", "shadow"  # traffic classes that are evidence: live, copied or replayed


class Refused(ThroughlineError):
    """The target will not serve a revision; the set that served before goes on. Repeating it would not help."""


@dataclass(frozen=True)
class Capabilities:
    """weights: shares of live traffic. sticky: by the value of a request field. mirror: copies to a shadow."""

    weights: bool
    sticky: bool
    mirror: bool


class Served(Record):
    """A revision that serves, as the target reports it."""

    revision: str
    role: Role
    weight: float


class Look(Record):
    """Cumulative counts since each server started, at one moment (wall clock)."""

    at: datetime
    latency_bounds: tuple[float, ...]  # seconds, rising, without infinity
    counts: dict[str, dict[str, Counts]] = Field(description="Revision -> traffic class -> counts.")

    def of(self, revision: str, *classes: str) -> Counts:
        """Counts of a revision over some traffic classes; zeros where it had no request."""
        total = Counts()
        for each in classes:
            total = total.plus(self.counts.get(revision, {}).get(each, Counts()))
        return total


class Target(Protocol):
    """One place where the revisions of use cases serve. What cannot be reached raises `ThroughlineError`."""

    @property
    def capabilities(self) -> Capabilities: ...

    def address(self, usecase: str) -> str:
        """Where predictions of a use case are requested."""
        ...

    def place(self, usecase: UseCase, model: ModelRecord) -> None:
        """Have the files of a version where the target loads them from. Raises when they are not as registered."""
        ...

    def apply(self, revisions: RevisionSet) -> None:
        """Have this set serve. Returns when it does. A revision that served keeps serving until the new set is ready.

        Raises `Refused` with the reason when a revision cannot be served. Repeating it is harmless.
        """
        ...

    def observe(self, usecase: str) -> tuple[Served, ...]:
        """What serves; empty: nothing does."""
        ...

    def evidence(self, usecase: str) -> Look:
        """What each revision has done so far."""
        ...

    def replay(self, usecase: str, revisions: Sequence[str], instances: Sequence[dict[str, Any]]) -> None:
        """Send each instance to each of the revisions, one after the other, as traffic of class `SHADOW`.

        Answers are not kept: failures are in the evidence.
        """
        ...


def in_effect(revisions: RevisionSet, served: Sequence[Served]) -> bool:
    """Whether the target serves this very set, to a millionth of a weight."""

    def rounded(role: Role, revision: str, weight: float) -> tuple[str, str, float]:
        return role, revision, round(weight, 6)

    wanted = {rounded(one.role, one.revision, one.weight) for one in revisions.revisions}
    return wanted == {rounded(one.role, one.revision, one.weight) for one in served}
