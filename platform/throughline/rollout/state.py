"""The state of a rollout: everything that is known of it, as the file that its controller writes.

Owns: `serving/<usecase>/rollout.json` and its form. Does not own: its transitions (`strategy.py`), who writes it
(`controller.py`).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from throughline.foundation.settings import Settings
from throughline.records import ModelRecord, Revision
from throughline.records.base import Record
from throughline.records.store import read_record, write_record
from throughline.rollout.comparison import Reference
from throughline.rollout.judge import Evidence, Verdict
from throughline.rollout.target import Look
from throughline.usecase.release import Release

Outcome = Literal["promoted", "rolled_back", "aborted"]
FILE = "rollout.json"
POINTS = 200  # of the plot over time: when there are more, every other one is dropped


class Step(Record):
    """Something that happened to a rollout, for people. `share`: of the answers, the candidate's from then on."""

    at: datetime
    what: str
    share: float
    why: str = ""
    by: str = ""  # who did it; empty: the controller


class Point(Record):
    """One look, for a plot. `evidence`: by metric, against "within tolerance"."""

    at: datetime
    share: float
    requests: float
    evidence: dict[str, float]
    conclusion: str


class Rollout(Record):
    """Instants are of the wall clock. While `outcome` is None it runs; with `ended_at` it is final."""

    rollout: str = Field(description="Id: a use case has one rollout after the other.")
    usecase: str
    plan: Release
    stable: Revision
    candidate: Revision
    model: ModelRecord = Field(description="The candidate as it was registered.")
    actor: str
    reason: str
    reference: Reference = Field(description="Score counts of both on the rows of its evaluation; or empty ones.")
    started_at: datetime
    deadline_at: datetime = Field(description="Later by as long as it was paused.")
    stage: int = 0
    entered_at: datetime | None = Field(None, description="Since when the target serves this stage; None: not yet.")
    paused_at: datetime | None = None
    outcome: Outcome | None = None
    why: str = Field("", description="The reason of the outcome.")
    ended_at: datetime | None = Field(None, description="When the outcome was carried out.")
    evidence: Evidence = Evidence()
    look: Look | None = Field(None, description="The newest: the next window begins there.")
    verdict: Verdict | None = None
    trouble: str = Field("", description="Why the newest tick saw or changed nothing; empty: it did.")
    steps: tuple[Step, ...] = ()
    recorded: int = Field(0, description="So many of the steps are in the history.")
    thin: bool = Field(True, description="Live requests are too few for the stage to end in time.")
    replays: str = Field("", description="Where the requests replayed since the newest look were from; empty: none.")
    points: tuple[Point, ...] = ()

    @property
    def running(self) -> bool:
        """Whether there is still something to do for it."""
        return self.ended_at is None


def read_rollout(settings: Settings, usecase: str) -> Rollout | None:
    """The newest rollout of a use case, None when it never had one. Raises `ThroughlineError`."""
    return read_record(_path(settings, usecase), Rollout, "remove the file, then start the rollout again")


def write_rollout(settings: Settings, rollout: Rollout) -> None:
    """Atomically: a reader sees the old state or the new one."""
    write_record(_path(settings, rollout.usecase), rollout)


def _path(settings: Settings, usecase: str) -> Path:
    return settings.serving_home / usecase / FILE
