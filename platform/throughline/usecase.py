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
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from throughline.errors import ThroughlineError
from throughline.settings import PROJECT_ROOT, Settings

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


class SourceTable(_Declared):
    key: list[str] = Field(min_length=1)
    freshness: Duration | None = None
    static: bool = Field(False, description="A reference table without daily partitions.")
    description: str


class Sources(_Declared):
    module: str = Field(description="Module with `read(table, start, end) -> polars.DataFrame`.")
    tables: dict[str, SourceTable]


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


class Trainer(_Declared):
    module: str
    processes: int = Field(ge=1)
    parameters: dict[str, Any]


class Evaluation(_Declared):
    holdout: Duration


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


class Release(_Declared):
    strategy: Literal["direct"]


class UseCase(_Declared):
    """One declaration; see `usecases/` for a commented one."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    goal: str
    business_metric: str
    owners: list[str]
    approvers: list[str]
    timezone: str
    replay: Replay
    entities: dict[str, str]
    sources: Sources
    request: dict[str, RequestField]
    prediction: Prediction
    features: Features
    label: Label
    trainer: Trainer
    evaluation: Evaluation
    gate: dict[Literal["auc", "log_loss_under_constant", "log_loss_over_champion", "ece"], Bound]
    monitoring: Monitoring
    release: Release

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:  # OSError: a folder of the zone database, such as "America"
            raise ValueError(f"{name!r} is not an IANA time zone, for example America/New_York") from error
        return name

    @model_validator(mode="after")
    def _fields_exist(self) -> UseCase:
        wanted = {*self.entities.values(), self.prediction.time_field, *self.prediction.key, *self.features.categories}
        if unknown := sorted(wanted - set(self.request)):
            raise ValueError(f"{', '.join(unknown)} used as entity or key but missing under `request`")
        if self.request[self.prediction.time_field].type != "timestamp":
            raise ValueError(f"prediction.time_field {self.prediction.time_field} must be of type timestamp")
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
