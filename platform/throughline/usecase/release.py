"""How a version that passed the gate reaches users: the strategy of its rollout, and what the judge tolerates.

Owns: what a plan may hold, and which plans are refused. Does not own: what a strategy does at each step
(`rollout/strategy.py`), the tests behind a verdict (`rollout/judge.py`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from throughline.usecase.base import Declared, Duration

Share = Annotated[float, Field(gt=0, lt=1)]


class Tolerated(Declared):
    """How far the candidate may be worse than stable, in the unit of the metric."""

    tolerance: float = Field(ge=0, lt=1)


class ToleratedLatency(Declared):
    """At most `tolerance` more of the candidate's answers than of stable's take longer than any given time, when the
    candidate is given `ratio` times it. Answers within `floor_ms` are fast enough, whatever stable takes."""

    ratio: float = Field(1.5, ge=1)
    tolerance: float = Field(0.05, ge=0, lt=1)
    floor_ms: float = Field(10, ge=0)


class Judge(Declared):
    """What a rollout is judged by; null for a metric leaves it out.

    errors: share of failed requests. scores: distance to stable's, as the largest difference of the distribution
    functions (Kolmogorov's). evaluation: by how much that distance exceeds the one on the held-out rows of the
    candidate's evaluation. outcomes: mean Brier loss of labelled predictions.
    """

    false_alarm: float = Field(
        0.01, gt=0, le=0.2, description="Bounds the probability that a revision within all tolerances is rolled back."
    )
    errors: Tolerated | None = Tolerated(tolerance=0.01)
    latency: ToleratedLatency | None = ToleratedLatency()
    scores: Tolerated | None = Tolerated(tolerance=0.25)
    evaluation: Tolerated | None = Tolerated(tolerance=0.15)
    outcomes: Tolerated | None = Tolerated(tolerance=0.01)

    @property
    def tolerances(self) -> dict[str, float]:
        """Of the metrics that are judged, in the order of reports."""
        declared = {name: getattr(self, name) for name in ("errors", "latency", "scores", "evaluation", "outcomes")}
        return {name: one.tolerance for name, one in declared.items() if one is not None}


class _Release(Declared):
    """`manual`: a version that passed the gate waits for one of the declared approvers."""

    policy: Literal["auto", "manual"] = "auto"
    submitter_may_approve: bool = False


class Direct(_Release):
    """All traffic at once, for a first deployment: without a stable revision there is nothing to compare with."""

    strategy: Literal["direct"]


class _Judged(_Release):
    """Durations are of the wall clock. A candidate that cannot be judged by the deadline goes back."""

    samples: int = Field(200, ge=20, description="Requests of the candidate before a step may end.")
    deadline: Duration = Field(timedelta(hours=1), description="For the whole rollout, pauses left out.")
    judge: Judge = Judge()

    # Metrics that have evidence as soon as there are requests, of any two versions.
    _AT_ONCE: ClassVar[frozenset[str]] = frozenset({"errors", "latency", "scores"})

    @model_validator(mode="after")
    def _has_a_metric(self) -> _Judged:
        if not self._AT_ONCE & set(self.judge.tolerances):
            raise ValueError("judge: a rollout needs a metric: declare errors, latency or scores")
        return self

    @property
    def least(self) -> timedelta:
        """What the dwell times and durations of the plan add up to."""
        return timedelta()

    @model_validator(mode="after")
    def _can_end_in_time(self) -> _Judged:
        if self.deadline <= self.least:
            raise ValueError(f"deadline: {self.deadline} does not exceed the plan's dwell times ({self.least})")
        return self


class BlueGreen(_Judged):
    """The candidate is judged beside stable on copies of requests, then takes all traffic at once, and is watched
    for `dwell` while stable is kept."""

    strategy: Literal["blue_green"]
    dwell: Duration = timedelta(seconds=30)

    @property
    def least(self) -> timedelta:
        return self.dwell


class _Stepped(_Judged):
    steps: tuple[Share, ...] = Field((0.05, 0.25, 0.5), min_length=1)
    dwell: Duration = timedelta(minutes=1)

    @model_validator(mode="after")
    def _steps_rise(self) -> _Stepped:
        if any(after <= before for before, after in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("steps: each must be larger than the one before")
        return self

    @property
    def least(self) -> timedelta:
        return self.dwell * len(self.steps)


class Canary(_Stepped):
    """The candidate takes the share of each step for at least `dwell` and `samples` requests."""

    strategy: Literal["canary"]


class ShadowCanary(_Stepped):
    """Before the steps the candidate gets copies of `shadow_share` of the requests; nobody gets its answers."""

    strategy: Literal["shadow_canary"]
    shadow_share: float = Field(1.0, gt=0, le=1)
    shadow_samples: int = Field(200, ge=20)


class AB(_Judged):
    """A fixed split by a key for `duration`; the candidate wins when its outcomes are shown to be better."""

    strategy: Literal["ab"]
    share: Share = 0.5
    duration: Duration
    sticky: str = Field(description="The request field that decides who sees which revision.")
    winner: Literal["brier"] = Field("brier", description="The outcome metric that decides.")

    @property
    def least(self) -> timedelta:
        return self.duration

    @model_validator(mode="after")
    def _outcomes_are_judged(self) -> AB:
        if self.judge.outcomes is None:
            raise ValueError("judge.outcomes: an A/B test is decided by outcomes, so they are judged")
        return self


Release = Annotated[Direct | BlueGreen | Canary | ShadowCanary | AB, Field(discriminator="strategy")]
