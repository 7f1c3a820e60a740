"""Explains the score of a logged prediction: from its event, by the model version that made it.

Owns: that only the logged score is explained. Does not own: the estimate (`explain.py`), the log (`events/log.py`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import polars as pl

from throughline.evaluation import background
from throughline.evaluation.explain import explain
from throughline.events.log import PredictionLog
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.registry import versions as models
from throughline.usecase import load_usecases

TOLERANCE = 1e-5  # between the logged score and the same file's on another machine


def explain_logged(settings: Settings, prediction_id: str) -> dict[str, Any]:
    """Explain a prediction from the features it was made of. Raises when it is not in the log.

    Returns prediction_id, model_name, model_version, decision, score, base_value, explanations: a list of feature,
    value, contribution, the largest first.
    """
    event = _logged(settings, prediction_id)
    record = models.get(settings, ModelReference(event["model_name"], event["model_version"]))
    kept = background.fetch(settings, record)
    if kept is None:
        raise ThroughlineError(
            f"{record.reference} has no background rows to compare with, as its evaluation has not written them: "
            "evaluate it again."
        )
    model = models.load(settings, record)
    kinds = {**dict.fromkeys(model.numeric, pl.Float64), **dict.fromkeys(model.categorical, pl.String)}
    values = event["features"]
    row = pl.DataFrame([pl.Series(name, [values[name]], kind) for name, kind in kinds.items() if name in values])
    explanation = explain(model, row, background.frame_of(kept, model, record.sha256))
    if abs(explanation.score - event["score"]) > TOLERANCE:
        raise ThroughlineError(
            f"{record.reference} gives {explanation.score:.6f} for the features logged with {prediction_id}, whose "
            f"logged score is {event['score']:.6f}: the event or the model was changed, so nothing is explained."
        )
    logged = {name: event[name] for name in ("model_name", "model_version", "decision")}
    return {"prediction_id": event["id"], **logged, **asdict(explanation)}


def _logged(settings: Settings, prediction_id: str) -> dict[str, Any]:
    """The prediction as whichever use case logged it, its JSON columns parsed. Raises one line when none did."""
    problems = []
    for usecase in load_usecases():
        try:
            return PredictionLog(settings, usecase).find(prediction_id)
        except ThroughlineError as error:
            problems.append(str(error))
    raise ThroughlineError(" ".join(dict.fromkeys(problems)))
