"""How a candidate is evaluated: held-out rows, slices, behaviour; bounds of the gate, statements of the card."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from throughline.usecase.base import Declared, Duration


class SimpleRuleOf(Declared):
    """A baseline: the rate of positives by bins of one feature."""

    feature: str
    bins: int = Field(10, ge=2, le=1000)


class SlicesOf(Declared):
    """Parts of the rows to evaluate separately, by columns of the dataset or local `month`, `weekday`, `hour`."""

    columns: list[str] = Field(default_factory=list)
    minimum_rows: int = Field(200, ge=1)
    protected: list[str] = Field(default_factory=list, description="Of `columns`: must not differ much.")

    @model_validator(mode="after")
    def _protected_are_slices(self) -> SlicesOf:
        if other := sorted(set(self.protected) - set(self.columns)):
            raise ValueError(f"protected: {', '.join(other)} is not among `columns`")
        return self


class Expectation(Declared):
    """What the score must do when a feature's value changes by `add`: stay the `same`, or never go the wrong way."""

    feature: str
    add: float
    score: Literal["same", "up", "down"]
    tolerance: float = Field(ge=0, le=1, description="By how much the score may move against it.")


class Evaluation(Declared):
    holdout: Duration
    simple_rule: SimpleRuleOf | None = None
    slices: SlicesOf = SlicesOf()
    behaviour: dict[str, Expectation] = Field(default_factory=dict)


# They are defined in `evaluation/gate.py`.
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


class Bound(Declared):
    """An interval a number must lie in; `below` is exclusive, the others inclusive."""

    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None


class SignOff(Declared):
    """Who is responsible for the statements of a card, and since when."""

    name: str = Field(pattern=r"\S")
    role: str = Field(pattern=r"\S")
    signed: date


class CardStatement(Declared):
    """Statements about a model that no number gives. A missing one fails the card of each version."""

    intended_use: str = ""
    affected_people: str = Field("", description="Who is affected by its decisions, and how.")
    forbidden_use: str = ""
    limits: list[str] = Field(default_factory=list)
    sign_off: list[SignOff] = Field(default_factory=list)
