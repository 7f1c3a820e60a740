"""When the champion must be retrained, and how soon again."""

from __future__ import annotations

from pydantic import Field

from throughline.usecase.base import Declared, Duration


class Calibration(Declared):
    window: Duration
    gap: float = Field(gt=0, lt=1)
    minimum_outcomes: int = Field(ge=1)


class Monitoring(Declared):
    calibration: Calibration
    max_model_age: Duration
    cool_down: Duration
