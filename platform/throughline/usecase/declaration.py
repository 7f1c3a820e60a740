"""A whole declaration: its sections, and the checks between them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from throughline.foundation.settings import Settings
from throughline.usecase.base import Declared
from throughline.usecase.evaluation import Bound, CardStatement, Evaluation, GateRule
from throughline.usecase.features import Features, Label, Online
from throughline.usecase.feeds import Zone
from throughline.usecase.monitoring import Monitoring
from throughline.usecase.prediction import Prediction, RequestField
from throughline.usecase.release import AB, Release
from throughline.usecase.sources import Sources
from throughline.usecase.training import Trainer


class Replay(Declared):
    """Days of the recorded data: the first, where the data clock starts, and the end (exclusive)."""

    start: date
    until: date
    end: date


class UseCase(Declared):
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
    trainer: str = Field(description="The one of `trainers` that a request uses unless it names another.")
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
            raise ValueError(f"{', '.join(unknown)} used as entity, key, time or category but missing under `request`")
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

    @model_validator(mode="after")
    def _the_sticky_key_is_requested(self) -> UseCase:
        if isinstance(self.release, AB) and self.release.sticky not in self.request:
            raise ValueError(f"release.sticky: {self.release.sticky} is missing under `request`")
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
