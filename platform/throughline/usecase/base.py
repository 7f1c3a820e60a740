"""The base of every part of a declaration: a strict, frozen model, and durations such as `36h`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: Any) -> timedelta:
    """`"36h"` -> 36 hours. Units: s, m, h, d. Raises `ValueError` on anything else."""
    if isinstance(text, timedelta):
        return text
    match = re.fullmatch(r"(\d{1,9})([smhd])", str(text), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write a number and s, m, h or d, for example 36h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def render_duration(duration: timedelta) -> str:
    """As `parse_duration` reads it, in seconds."""
    return f"{round(duration.total_seconds())}s"


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(render_duration, return_type=str, when_used="json")
]


class Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
