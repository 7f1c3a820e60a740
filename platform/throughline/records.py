"""What the steps of the graph hand to each other: small, typed, stored as JSON.

Owns: the words of each hand-over, from dataset to endpoint. Does not own: where they are stored, or who writes them.
Instants are timezone-aware, in UTC.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Record(BaseModel):
    # NaN is written as "NaN" and read back: pydantic's default, null, would make a record that cannot be read.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class TableVersion(Record):
    """A Delta table at a version: an address, which OPTIMIZE or a retry may change."""

    table: str = Field(description="usecase/layer/table")
    version: int

    def __str__(self) -> str:
        return f"{self.table}@{self.version}"


class FeatureRecord(Record):
    """One feature as registered, and the feature services that have it."""

    name: str
    type: str
    description: str
    tags: dict[str, str]
    services: list[str]
    upstream: list[str] | None = Field(description="Raw TABLE.COLUMN; None where that could not be told.")


class FeatureViewRecord(Record):
    """One feature view as registered, on the version of its table that it is pinned to."""

    name: str
    description: str
    owner: str
    tags: dict[str, str]
    entities: list[str]
    table: TableVersion
    features: list[FeatureRecord]
    seen_within: timedelta | None = Field(None, description="How long a raw row is seen in it; None: not told.")


class FeatureStoreRecord(Record):
    """The feature store as registered: every source pinned, and the spine that goes with them."""

    usecase: str
    as_of: datetime
    sources: list[TableVersion]
    spine: TableVersion
    views: list[FeatureViewRecord] = Field(default_factory=list)


class OnlineStoreRecord(Record):
    """The online store holds, per entity, the newest tick up to `until`."""

    usecase: str
    until: datetime
    sources: list[TableVersion]


class DatasetRecord(Record):
    """A training dataset: rows of a spine joined point in time with a feature service at pinned table versions.

    The table has the columns `row_key` (string, unique), `prediction_time` and `label_available_at` (UTC), `label`
    (0 or 1) and one column per name in `numeric` and `categorical`; a missing value is null.
    """

    usecase: str
    table: TableVersion
    path: str
    fingerprint: str = Field(description="Hash of the logical content: identity, whatever the table version.")
    as_of: datetime
    rows: int
    numeric: list[str]
    categorical: list[str]
    service: str = Field("", description="The feature service that gave the features.")
    views: dict[str, list[str]] = Field(default_factory=dict, description="Feature view -> the features it gave.")
    inputs: list[TableVersion] = Field(description="The pinned versions that were read.")
    holdout_from: datetime = Field(description="Rows whose prediction time is at or after this are never trained on.")

    def at(self, version: int) -> DatasetRecord:
        """The same rows under another version of their table."""
        return self.model_copy(update={"table": TableVersion(table=self.table.table, version=version)})


class ModelOrigin(Record):
    """A model and what it was made from: all that is known of it before the registry gives it a number."""

    name: str
    run_id: str
    sha256: str = Field(description="Of its ONNX file.")
    dataset_fingerprint: str
    trained_until: datetime
    trainer: str
    parameters: dict[str, Any]


class ModelRecord(ModelOrigin):
    """A registered model version."""

    version: int
    uri: str = Field(description="Folder with `model.onnx`, resolved: no models:/ or mlflow-artifacts:/ scheme.")

    @property
    def reference(self) -> str:
        return f"{self.name}/{self.version}"


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
    """Rows of about the same score: what was said and what came."""

    mean_score: float
    outcome_rate: float
    rows: int


class ServingCost(Record):
    """Of one prediction in this process, model alone."""

    latency_p50_ms: float
    latency_p95_ms: float
    size_bytes: int


class GlobalImportance(Record):
    """What each feature does to the scores of held-out rows: its mean absolute contribution, in probability."""

    model: str = Field(description="NAME/VERSION")
    rows: int = Field(description="Over how many rows.")
    base_value: float = Field(description="Mean score of the background.")
    features: dict[str, float] = Field(description="Largest first.")


class EvaluationRecord(Record):
    """A candidate against constant, simple rule and, when there is one, champion, all on the rows held out by time."""

    model: str = Field(description="NAME/VERSION")
    sha256: str
    dataset_fingerprint: str
    evaluated_at: datetime
    holdout_from: datetime
    holdout_until: datetime
    base_rate: float = Field(math.nan, description="Of the rows that could be trained on.")
    candidate: Metrics
    constant: Metrics
    champion: Metrics | None
    champion_model: str | None
    simple_rule: Metrics | None = None
    days: int = Field(0, description="Local days that the held-out rows lie on.")
    intervals: dict[str, dict[str, Interval]] = Field(
        default_factory=dict,
        description="Of whom -> metric, and `over_champion`: candidate minus champion, paired by day. Some may lack.",
    )
    reliability: dict[str, list[ReliabilityBin]] = Field(default_factory=dict, description="Candidate and champion.")
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


class Background(Record):
    """Rows that an explanation compares with, for one model file: feature -> a value per row, None where missing."""

    sha256: str
    numeric: dict[str, list[float | None]]
    categorical: dict[str, list[str | None]]

    @model_validator(mode="after")
    def _as_many_of_each(self) -> Background:
        counts = {len(values) for values in (*self.numeric.values(), *self.categorical.values())}
        if len(counts) != 1 or not 1 <= max(counts) <= 1000:
            raise ValueError("must have the same number of values for each feature, 1 to 1000")
        return self


class RuleVerdict(Record):
    """One rule of a gate; `cannot_say` counts as a failure."""

    rule: str
    verdict: Literal["pass", "fail", "cannot_say"]
    value: float | None
    bound: str
    where: str = Field("", description="Which of several the number is of: a slice, a check, a column.")

    def __str__(self) -> str:
        number = "" if self.value is None or math.isnan(self.value) else f"{self.value:.4f}"
        told = ", ".join(part for part in (number, self.where, self.bound) if part)
        return f"{self.rule} {self.verdict.replace('_', ' ')} ({told})"


class GateDecision(Record):
    """The decision to release one model version, with its reasons. `wait`: only somebody's approval is missing."""

    model: str
    sha256: str
    decision: Literal["release", "wait", "reject"]
    decided_at: datetime
    rules: list[RuleVerdict]
    compared_with: str | None = Field(None, description="The champion of the evaluation; None: there was none.")

    @property
    def reasons(self) -> str:
        return "; ".join(str(rule) for rule in self.rules)

    @property
    def failures(self) -> str:
        """The rules that did not pass, as one line."""
        return "; ".join(str(rule) for rule in self.rules if rule.verdict != "pass")


class HistoryEvent(Record):
    """Something done to a model version by somebody: never changed, never removed. `at` is the wall clock's."""

    id: str = Field(description="The same event told twice has the same one.")
    at: datetime
    actor: str = Field(description="Who did it: a user's name, or `graph` for the platform itself.")
    action: Literal["registered", "decided", "approved", "champion", "withdrawn", "refused", "note"]
    target: str = Field(description="NAME/VERSION, or NAME for what concerns no version alone.")
    old: str | None = None
    new: str | None = None
    reason: str = ""


class EndpointRecord(Record):
    """What serves now."""

    usecase: str
    model: str
    sha256: str
    revision: str
    address: str
    deployed_at: datetime


class InferenceLogRecord(Record):
    """The inference log as it stood: its version (None before the first event) and what the collector counted."""

    table: TableVersion | None
    received: int
    written: int
    lost: int


class OutcomesRecord(Record):
    """Predictions joined with what became of them, up to `as_of`."""

    table: TableVersion
    as_of: datetime
    predictions: int
    labelled: int
    pending: int
    never_labelled: int
    log_complete: bool


class CalibrationRecord(Record):
    """Mean score against outcome rate of the serving model version, over a window on the data clock."""

    model: str | None
    window_from: datetime
    window_until: datetime
    outcomes: int
    mean_score: float | None
    outcome_rate: float | None
    verdict: Literal["ok", "drift", "cannot_say"]
    reason: str

    @property
    def gap(self) -> float | None:
        """Mean score minus outcome rate; positive: the model warns too often."""
        if self.mean_score is None or self.outcome_rate is None:
            return None
        return self.mean_score - self.outcome_rate
