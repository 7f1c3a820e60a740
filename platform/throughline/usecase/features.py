"""Where the features are defined, the label, and the freshness and parity required of the online store."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from throughline.usecase.base import Declared, Duration


class Features(Declared):
    definitions: str
    request_features: str
    service: str
    spine: str
    categories: list[str] = Field(description="Request fields that the model sees as categories.")


class Label(Declared):
    column: str
    known_at: str
    delay: Duration
    event: str
    feedback_wait: Duration = Field(
        timedelta(days=30), description="An outcome reported for a prediction that is not logged waits for it so long."
    )


class Parity(Declared):
    """How many entities of each feature view a check compares online with offline, drawn by the seed."""

    entities: int = Field(200, ge=1)
    seed: int = 0


class Online(Declared):
    """Requirements of the online store. `freshness`: how old a view's newest row may be, on the data clock."""

    overlap: Duration = Field(timedelta(hours=2), description="Rows at most this late are materialised incrementally.")
    freshness: dict[str, Duration] = Field(default_factory=dict)
    parity: Parity = Parity()
