"""What an evaluation measured."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from pydantic import Field, model_validator

from throughline.foundation.references import ModelReference
from throughline.records.base import ModelFileRecord, Record


class Metrics(Record):
    """Of a score against labels on the same rows; NaN where it cannot be computed."""

    rows: int
    log_loss: float
    auc: float
    brier: float
    ece: float


class Interval(Record):
    """Of a number, at the 95 % level; by drawing days with replacement."""

    low: float
    high: float


class SliceMetrics(Record):
    """A candidate on the held-out rows of which a column has a value; NaN where it cannot be computed."""

    column: str
    value: str
    metrics: Metrics
    base_rate: float
    mean_score: float
    log_loss_under_constant: float
    log_loss_over_champion: float | None = Field(description="None: there is no champion.")
    over_champion_interval: Interval | None
    caught: float = Field(description="Share of the positives that get the positive decision.")

    def __str__(self) -> str:
        return f"{self.column}={self.value}"


class BehaviourCheck(Record):
    """What a declared change of a feature did to scores: `broken` is the share of rows that broke the expectation."""

    name: str
    rows: int
    broken: float
    mean_change: float


class ReliabilityBin(Record):
    """Rows of about the same score: mean score and outcome rate."""

    mean_score: float
    outcome_rate: float
    rows: int


class ServingCost(Record):
    """Of one prediction in this process, by the model without the server."""

    latency_p50_ms: float
    latency_p95_ms: float
    size_bytes: int


class GlobalImportance(Record):
    """What each feature does to the scores of held-out rows: its mean absolute contribution, in probability."""

    model: ModelReference
    rows: int = Field(description="Over how many rows.")
    base_value: float = Field(description="Mean score of the background.")
    features: dict[str, float] = Field(description="Largest first.")


SCORE_BINS = 20  # of a histogram of scores


class EvaluationRecord(ModelFileRecord):
    """A candidate against constant, simple rule and, when there is one, champion, on the rows held out by time: of
    these, each only on rows after all that it learned from."""

    dataset_fingerprint: str
    evaluated_at: datetime
    holdout_from: datetime
    holdout_until: datetime
    base_rate: float = Field(math.nan, description="Of the rows that could be trained on.")
    candidate: Metrics
    constant: Metrics
    champion: Metrics | None = Field(description="None: there is no champion, or it learned from too many of the rows.")
    champion_model: ModelReference | None
    champion_trained_until: datetime | None = Field(
        None,
        description="Up to here the champion learned from held-out rows: only later ones compare. None: from none.",
    )
    beside_champion: Metrics | None = Field(
        None, description="Of the candidate on the rows that the champion is compared on; None: on all of them."
    )
    simple_rule: Metrics | None = None
    days: int = Field(0, description="Local days that the held-out rows lie on.")
    intervals: dict[str, dict[str, Interval]] = Field(
        default_factory=dict,
        description="Of whom -> metric, and `over_champion`: candidate minus champion, paired by day. Some may lack.",
    )
    reliability: dict[str, list[ReliabilityBin]] = Field(default_factory=dict, description="Candidate and champion.")
    score_counts: dict[str, list[int]] = Field(
        default_factory=dict,
        description="Of candidate and champion on the rows on which they are compared, by equal bins of [0, 1].",
    )
    training: Metrics | None = Field(None, description="Of the candidate on rows that it could be trained on.")
    slices: list[SliceMetrics] = Field(default_factory=list)
    disparity: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="Protected column -> kind -> largest difference."
    )
    behaviour: list[BehaviourCheck] = Field(default_factory=list)
    missing: dict[str, float] = Field(
        default_factory=dict, description="Feature view -> rise of log loss when all of it is missing."
    )
    outside_domain: float = Field(math.nan, description="Share of rows with a value the model was not trained on.")
    cost: ServingCost | None = None
    importance: GlobalImportance | None = None

    @property
    def judged(self) -> dict[str, Metrics]:
        """The metrics of the candidate and of what it must beat, without those that there are none of."""
        found = {name: getattr(self, name) for name in ("candidate", "champion", "simple_rule", "constant")}
        return {name: metrics for name, metrics in found.items() if metrics is not None}

    def interval(self, name: str, metric: str) -> Interval | None:
        """`name`: one of `judged`, or `over_champion`."""
        return self.intervals.get(name, {}).get(metric)

    @property
    def comparison(self) -> str:
        """What limits the comparison with the champion, for people; empty: it is on all held-out rows."""
        if self.champion_trained_until is None:
            return ""
        until = f"{self.champion_trained_until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        learned = f"champion {self.champion_model} learned from held-out rows until {until}"
        if self.champion is None:
            return f"{learned}, and too few days are left: it is not compared"
        return f"{learned}: compared on the {self.champion.rows:,} rows after that"


class Background(Record):
    """Rows that an explanation compares with, for one model file: feature -> a value per row, None where missing."""

    sha256: str
    numeric: dict[str, list[float | None]]
    categorical: dict[str, list[str | None]]
    scores: list[float] = Field([], description="Of each row, by the model when it was evaluated; older ones lack it.")

    @model_validator(mode="after")
    def _as_many_of_each(self) -> Background:
        columns = [*self.numeric.values(), *self.categorical.values(), *([self.scores] if self.scores else [])]
        counts = {len(values) for values in columns}
        if len(counts) != 1 or not 1 <= max(counts) <= 1000:
            raise ValueError("must have the same number of values for each feature, 1 to 1000")
        return self
