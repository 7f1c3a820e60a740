"""Trainers: their launchers, resources, parameters and search spaces."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from throughline.usecase.base import Declared


class Resources(Declared):
    """Of one worker. `cpu` sets its threads; `memory` and `gpu` are requested from a cluster."""

    cpu: float = Field(1.0, ge=0.001, allow_inf_nan=False)
    memory: str = Field("2Gi", pattern=r"^[1-9]\d*(Mi|Gi)$")
    gpu: int = Field(0, ge=0)

    @property
    def threads(self) -> int:
        return max(1, int(self.cpu))


class Choices(Declared):
    """A search space: one of a list."""

    choices: list[Any] = Field(min_length=2)


class Range(Declared):
    """A search space: an interval; of integers when both ends are, at least 2 apart."""

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
        return self.low % 1 == 0 and self.high % 1 == 0 and self.high - self.low >= 2


Varied = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "choices" if isinstance(value, Choices) or "choices" in dict(value) else "range"),
]


class Trainer(Declared):
    """A module that trains, its launcher, parameters and search space. With `members` it combines their models."""

    module: str
    launcher: Literal["single", "horovod", "elastic", "torchrun"] = "single"
    processes: int = Field(1, ge=1)
    min_processes: int | None = Field(None, ge=1, description="The least with which an elastic training continues.")
    precision: Literal["float32", "bfloat16"] = "float32"
    resources: Resources = Resources()
    parameters: dict[str, Any] = Field(default_factory=dict)
    members: list[str] = Field(default_factory=list)
    search: dict[str, Varied] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _launcher_fits(self) -> Trainer:
        if self.launcher == "single" and self.processes != 1:
            raise ValueError(f"{self.processes} processes under `launcher: single`: use horovod, elastic or torchrun")
        if self.min_processes is not None and (self.launcher != "elastic" or self.min_processes > self.processes):
            raise ValueError("min_processes is for `launcher: elastic`, and at most processes")
        return self
