"""A use case as declared in `usecases/*.yaml`: the typed model and its loader.

Owns: what a declaration may say and what each word means. Does not own: any use case.
Durations are written `90m`, `36h`, `14d`; days are local days of `timezone`.
"""

from __future__ import annotations

import importlib
import re
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from throughline.errors import ThroughlineError
from throughline.settings import PROJECT_ROOT, Settings
from throughline.sources.declaration import Feed, FilesFeed, PushFeed, Zone

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: Any) -> timedelta:
    """`"36h"` -> 36 hours. Units: s, m, h, d. Raises `ValueError` on anything else."""
    if isinstance(text, timedelta):
        return text
    match = re.fullmatch(r"(\d{1,9})([smhd])", str(text), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a number and s, m, h or d, for example 36h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replay(_Declared):
    """Days of the recorded data: the first, where the data clock starts, and the end (exclusive)."""

    start: date
    until: date
    end: date


class Column(_Declared):
    """What a column may hold. Without `nulls` no value may be missing; with it, up to that share of a day's may."""

    type: Literal["string", "integer", "number", "boolean", "timestamp"]
    nulls: float | None = Field(None, gt=0, le=1)
    at_least: float | None = None
    at_most: float | None = None
    values: list[str | int] | None = Field(None, min_length=1)
    pattern: str | None = Field(None, description="A regular expression that the whole text must match.")

    @model_validator(mode="after")
    def _rules_fit_the_type(self) -> Column:
        fitting = {
            "at_least": {"integer", "number"},
            "at_most": {"integer", "number"},
            "values": {"string", "integer"},
            "pattern": {"string"},
        }
        for rule, types in fitting.items():
            if getattr(self, rule) is not None and self.type not in types:
                raise ValueError(f"{rule} is no rule for type {self.type}, only for {' and '.join(sorted(types))}")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        wanted = str if self.type == "string" else int
        if self.values is not None and not all(type(value) is wanted for value in self.values):
            raise ValueError(f"values must be of type {self.type}")
        return self

    @field_validator("pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error})") from error
        return pattern


class Volume(_Declared):
    """Rows a day, as delivered. The first day also holds earlier deliveries: `at_most` does not hold for it."""

    at_least: int = Field(1, ge=1)
    at_most: int | None = Field(None, ge=1)
    empty: Literal["bad", "warn"] = Field("bad", description="A day without any row: refused, or let through and told.")

    @model_validator(mode="after")
    def _not_upside_down(self) -> Volume:
        if self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        return self


class Drift(_Declared):
    """How far the newest days' distribution may be from that of the days the training dataset used."""

    columns: list[str] = Field(min_length=1)
    psi: float = Field(0.25, gt=0, description="Population stability index; 0.25 is the usual mark of a major shift.")
    window: Duration = timedelta(days=14)
    minimum_rows: int = Field(500, ge=1, description="With fewer rows on either side there is no verdict.")


# Every source delivers these with every row: they are not declared.
CONTRACT = {"event_time": Column(type="timestamp"), "available_at": Column(type="timestamp")}


class Expectations(_Declared):
    """What a raw table's days must be like. A row that breaks a rule is quarantined; a day that breaks one is refused.

    Rules of rows: type, null, range, allowed values, pattern, repeated key. Rules of days: schema, volume, shares of
    nulls, of repeated keys and of bad rows. `drift` refuses nothing: seasons change, too.
    """

    columns: dict[str, Column] = Field(min_length=1)
    rows: Volume = Volume()
    max_bad_share: float = Field(0.05, ge=0, lt=1)
    max_duplicate_share: float = Field(0.01, ge=0, lt=1)
    drift: Drift | None = None

    @model_validator(mode="after")
    def _columns_are_the_tables_own(self) -> Expectations:
        if given := sorted(set(self.columns) & set(CONTRACT)):
            raise ValueError(f"{', '.join(given)} come with every row: take them out of `columns`")
        if self.drift and (unknown := sorted(set(self.drift.columns) - set(self.columns))):
            raise ValueError(f"{', '.join(unknown)} under `drift` but missing under `columns`")
        return self

    @property
    def all_columns(self) -> dict[str, Column]:
        return {**CONTRACT, **self.columns}


class SourceTable(_Declared):
    key: list[str] = Field(min_length=1)
    freshness: Duration | None = None
    static: bool = Field(False, description="A reference table without daily partitions.")
    description: str
    feed: Feed | None = Field(None, alias="from", description="Where its rows come from; unset: `sources.module`.")
    expects: Expectations | None = None

    @model_validator(mode="after")
    def _feed_is_typed(self) -> SourceTable:
        """Text has no types of its own, and what is pushed is held to the declared columns on arrival."""
        if self.feed is None:
            return self
        if self.expects is None:
            if isinstance(self.feed, PushFeed) or (isinstance(self.feed, FilesFeed) and self.feed.kind != "parquet"):
                raise ValueError("declare `expects.columns`: these rows bring no types of their own")
            return self
        columns = self.expects.all_columns
        for name in (self.feed.event_time, self.feed.available_at):
            if name in columns and columns[name].type != "timestamp":
                raise ValueError(f"column {name} says when a row happened or was known: its type is timestamp")
        if isinstance(self.feed, PushFeed):
            known = self.expects.columns.get(self.feed.push)
            if known is None or known.nulls is not None or known.type not in ("string", "integer"):
                raise ValueError(f"`push: {self.feed.push}` is no string or integer column without nulls of `expects`")
        return self

    @model_validator(mode="after")
    def _key_is_declared(self) -> SourceTable:
        for name in self.key if self.expects else ():
            column = self.expects.all_columns.get(name)
            if column is None:
                raise ValueError(f"key column {name} is missing under `expects.columns`")
            if column.nulls is not None:
                raise ValueError(f"key column {name} may not be null: take `nulls` away")
        return self


class Sources(_Declared):
    module: str | None = Field(None, description="Module with `read(table, start, end) -> polars.DataFrame`.")
    tables: dict[str, SourceTable]

    @model_validator(mode="after")
    def _every_table_has_a_source(self) -> Sources:
        if self.module is None and (without := sorted(name for name, table in self.tables.items() if not table.feed)):
            raise ValueError(f"{', '.join(without)} has no source: declare `from` there, or `module` for all")
        return self


class RequestField(_Declared):
    type: Literal["string", "integer", "number", "timestamp"]
    nullable: bool = False
    example: Any = None


class Decision(_Declared):
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


class Prediction(_Declared):
    time_field: str
    lead: Duration
    key: list[str]
    decision: Decision


class Features(_Declared):
    definitions: str
    request_features: str
    service: str
    spine: str
    categories: list[str] = Field(description="Request fields that the model sees as categories.")


class Label(_Declared):
    column: str
    known_at: str
    delay: Duration
    event: str


class Resources(_Declared):
    """Of one worker. Threads follow from `cpu`; memory and GPUs are asked of a cluster."""

    cpu: float = Field(1.0, ge=0.001, allow_inf_nan=False)
    memory: str = Field("2Gi", pattern=r"^[1-9]\d*(Mi|Gi)$")
    gpu: int = Field(0, ge=0)

    @property
    def threads(self) -> int:
        return max(1, int(self.cpu))


class Choices(_Declared):
    """A parameter of a search that is one of a list."""

    choices: list[Any] = Field(min_length=2)


class Range(_Declared):
    """A parameter of a search that lies in an interval; whole numbers when both ends are."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _not_upside_down(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, not at {self.low}")
        return self

    @property
    def whole(self) -> bool:
        return self.low.is_integer() and self.high.is_integer() and self.high - self.low >= 2


Varied = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda said: "choices" if isinstance(said, Choices) or "choices" in dict(said) else "range"),
]


class Trainer(_Declared):
    """One way to train: a module, what runs it, its parameters, and where a search may look.

    A trainer with `members` combines models that those train first, on the same rows.
    """

    module: str
    launcher: Literal["single", "horovod", "elastic", "torchrun"] = "single"
    processes: int = Field(1, ge=1)
    min_processes: int | None = Field(None, ge=1, description="With how many an elastic training goes on.")
    precision: Literal["float32", "bfloat16"] = "float32"
    resources: Resources = Resources()
    parameters: dict[str, Any] = Field(default_factory=dict)
    members: list[str] = Field(default_factory=list)
    search: dict[str, Varied] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _launcher_fits(self) -> Trainer:
        if self.launcher == "single" and self.processes != 1:
            raise ValueError(f"{self.processes} processes under `launcher: single`: take horovod, elastic or torchrun")
        if self.min_processes is not None and (self.launcher != "elastic" or self.min_processes > self.processes):
            raise ValueError("min_processes is for `launcher: elastic`, and at most processes")
        return self


class SimpleRuleOf(_Declared):
    """A rule to beat: the rate of positives at the level of one feature."""

    feature: str
    bins: int = Field(10, ge=2, le=1000)


class SlicesOf(_Declared):
    """Parts of the rows that are judged on their own, by columns of the dataset or local `month`, `weekday`, `hour`."""

    columns: list[str] = Field(default_factory=list)
    minimum_rows: int = Field(200, ge=1)
    protected: list[str] = Field(default_factory=list, description="Of `columns`: must not differ much.")

    @model_validator(mode="after")
    def _protected_are_slices(self) -> SlicesOf:
        if other := sorted(set(self.protected) - set(self.columns)):
            raise ValueError(f"protected: {', '.join(other)} is not among `columns`")
        return self


class Expectation(_Declared):
    """What the score must do when a feature's value changes by `add`: stay the `same`, or never go the wrong way."""

    feature: str
    add: float
    score: Literal["same", "up", "down"]
    tolerance: float = Field(ge=0, le=1, description="By how much the score may move against it.")


class Evaluation(_Declared):
    holdout: Duration
    simple_rule: SimpleRuleOf | None = None
    slices: SlicesOf = SlicesOf()
    behaviour: dict[str, Expectation] = Field(default_factory=dict)


# What each of them is: `evaluation/gate.py`.
GateRule = Literal[
    "auc",
    "ece",
    "log_loss_under_constant",
    "log_loss_under_simple_rule",
    "log_loss_over_champion",
    "generalisation_gap",
    "slice_log_loss_under_constant",
    "slice_log_loss_over_champion",
    "disparity_calibration",
    "disparity_opportunity",
    "broken_behaviour",
    "missing_source",
    "outside_domain",
    "latency_p95_ms",
    "size_mb",
]


class Bound(_Declared):
    """An interval a number must lie in; `below` is exclusive, the others inclusive."""

    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None


class Calibration(_Declared):
    window: Duration
    gap: float = Field(gt=0, lt=1)
    minimum_outcomes: int = Field(ge=1)


class Monitoring(_Declared):
    calibration: Calibration
    max_model_age: Duration
    cool_down: Duration


class Parity(_Declared):
    """How many entities of each feature view are compared, online with offline, each time; drawn by the seed."""

    entities: int = Field(200, ge=1)
    seed: int = 0


class Online(_Declared):
    """What is promised of the online store. `freshness`: how old a view's newest row may be, on the data clock."""

    overlap: Duration = Field(timedelta(hours=2), description="Rows this late are seen without writing all anew.")
    freshness: dict[str, Duration] = Field(default_factory=dict)
    parity: Parity = Parity()


class Release(_Declared):
    """`manual`: what the gate lets through waits for one of the declaration's approvers."""

    strategy: Literal["direct"]
    policy: Literal["auto", "manual"] = "auto"
    submitter_may_approve: bool = False


class SignOff(_Declared):
    """Who answers for what a card says of the model's use, and since when."""

    name: str = Field(pattern=r"\S")
    role: str = Field(pattern=r"\S")
    signed: date


class CardStatement(_Declared):
    """What people must say of a model, since no number does. Whatever is missing fails the card of each version."""

    intended_use: str = ""
    affected_people: str = Field("", description="Whose lives its decisions touch, and how.")
    forbidden_use: str = ""
    limits: list[str] = Field(default_factory=list)
    sign_off: list[SignOff] = Field(default_factory=list)


class UseCase(_Declared):
    """One declaration; see `usecases/` for a commented one."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    goal: str
    business_metric: str
    owners: list[str]
    approvers: list[str]
    timezone: Zone
    replay: Replay
    entities: dict[str, str]
    sources: Sources
    request: dict[str, RequestField]
    prediction: Prediction
    features: Features
    label: Label
    trainer: str = Field(description="The one of `trainers` that is taken when nobody names another.")
    trainers: dict[str, Trainer] = Field(min_length=1)
    evaluation: Evaluation
    gate: dict[GateRule, Bound]
    online: Online = Online()
    monitoring: Monitoring
    release: Release
    card: CardStatement = CardStatement()

    @model_validator(mode="after")
    def _fields_exist(self) -> UseCase:
        wanted = {*self.entities.values(), self.prediction.time_field, *self.prediction.key, *self.features.categories}
        if unknown := sorted(wanted - set(self.request)):
            raise ValueError(f"{', '.join(unknown)} used as entity or key but missing under `request`")
        if self.request[self.prediction.time_field].type != "timestamp":
            raise ValueError(f"prediction.time_field {self.prediction.time_field} must be of type timestamp")
        return self

    @model_validator(mode="after")
    def _trainers_are_declared(self) -> UseCase:
        if self.trainer not in self.trainers:
            raise ValueError(f"trainer {self.trainer} is missing under `trainers`")
        for name, trainer in self.trainers.items():
            for member in trainer.members:
                if member not in self.trainers or self.trainers[member].members:
                    raise ValueError(f"member {member} of trainer {name} must be a trainer without members")
        return self

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def day_start(self, day: date) -> datetime:
        """The instant (UTC) at which the local day begins."""
        return datetime.combine(day, time.min, self.zone).astimezone(UTC)

    def local_day(self, instant: datetime) -> date:
        return instant.astimezone(self.zone).date()

    def first_day(self, settings: Settings) -> date:
        return settings.data_from or self.replay.start

    def clock_start(self, settings: Settings) -> datetime:
        """Where the data clock of a new home stands (UTC)."""
        return self.day_start(settings.data_until or self.replay.until)


def load_usecase(path: Path) -> UseCase:
    """Read and validate one declaration. Raises `ThroughlineError` naming file and field."""
    try:
        return UseCase.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise ThroughlineError(f"{path} cannot be read ({error.strerror}): is the name right?") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ThroughlineError(f"{path.name} is not YAML{where} ({problem}): correct the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "declaration"
        problem = first["msg"].removeprefix("Value error, ")
        raise ThroughlineError(f"{path.name}: {where}: {problem} ({error.error_count()} problem(s)).") from error


def load_usecases(folder: Path = PROJECT_ROOT / "usecases") -> dict[str, UseCase]:
    """All declarations by name, in the order of their file names."""
    loaded = [load_usecase(path) for path in sorted(folder.glob("*.yaml"))]
    return {usecase.name: usecase for usecase in loaded}


def get_usecase(name: str) -> UseCase:
    usecases = load_usecases()
    if name not in usecases:
        raise ThroughlineError(f"Unknown use case {name!r}: declared are {', '.join(usecases)} (usecases/*.yaml).")
    return usecases[name]


def load_object(reference: str) -> Any:
    """`package.module` or `package.module:attribute` named by a declaration -> the object. Only ever our own code."""
    module, _, attribute = reference.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
