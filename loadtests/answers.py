"""What counts as an answer under load. Pure."""

from __future__ import annotations

import json
from typing import Any

from throughline.foundation.errors import ThroughlineError


class BadAnswer(ThroughlineError):
    """An answer that is not a prediction per row; the text is what a report shows."""


def prediction_ids(status: int, content: bytes | bytearray, rows: int) -> tuple[str, ...]:
    """The ids in an answer. Raises `BadAnswer` when it is not a probability per row, each with an id of its own."""
    if status != 200:
        raise BadAnswer(f"{status}: {bytes(content[:100]).decode(errors='replace')}")
    try:
        predictions: list[Any] = json.loads(content)["predictions"]
        ids = tuple(prediction["prediction_id"] for prediction in predictions)
        scores = [prediction["score"] for prediction in predictions]
    except (ValueError, KeyError, TypeError):
        raise BadAnswer("200 without predictions") from None
    if len(ids) != rows or len(set(ids)) != rows or not all(ids):
        raise BadAnswer(f"200 with {len(set(ids))} predictions for {rows} rows")
    if not all(isinstance(score, float) and 0 <= score <= 1 for score in scores):
        raise BadAnswer("200 with a score that is not a probability")
    return ids
