"""Why a prediction that was made said what it said: from its event, by the model version that made it.

Owns: that what is explained is what was said. Does not own: the estimate (`explain.py`), finding the event
(`events/log.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import polars as pl

from throughline.evaluation import background
from throughline.evaluation.explain import explain
from throughline.events.log import PredictionLog
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.models.served_model import ServedModel
from throughline.registry import versions as models
from throughline.usecase import load_usecases

TOLERANCE = 1e-5  # between the logged score and the same file's on another machine


def explain_logged(settings: Settings, prediction_id: str) -> dict[str, Any]:
    """Explain a prediction from the features it was made of. Raises when it is not in the log.

    prediction_id, model_name, model_version, decision, score, base_value, explanations: a list of feature, value,
    contribution, the largest first.
    """
    event = logged(settings, prediction_id)
    record = models.get(settings, ModelReference(event["model_name"], event["model_version"]))
    kept = background.fetch(settings, record)
    if kept is None:
        raise ThroughlineError(
            f"{record.reference} has nothing to compare with: it was never evaluated, or before explanations were; "
            "evaluate it again."
        )
    model = models.load(settings, record)
    row = features_of(event["features"], model)
    explanation = explain(model, row, background.frame_of(kept, model, record.sha256))
    if abs(explanation.score - event["score"]) > TOLERANCE:
        raise ThroughlineError(
            f"{record.reference} gives {explanation.score:.6f} for the features logged with {prediction_id}, which "
            f"was answered {event['score']:.6f}: the event or the model was changed, so nothing is explained."
        )
    said = {name: event[name] for name in ("model_name", "model_version", "decision")}
    return {"prediction_id": event["id"], **said, **asdict(explanation)}


def logged(settings: Settings, prediction_id: str) -> dict[str, Any]:
    """The prediction as whichever use case logged it, its JSON columns parsed. Raises one line when none did."""
    problems = []
    for usecase in load_usecases():
        try:
            return PredictionLog(settings, usecase).find(prediction_id)
        except ThroughlineError as error:
            problems.append(str(error))
    raise ThroughlineError(" ".join(dict.fromkeys(problems)))


def features_of(values: Mapping[str, Any], model: ServedModel) -> pl.DataFrame:
    """The features of an event as one row of the model's types."""
    kinds = {**dict.fromkeys(model.numeric, pl.Float64), **dict.fromkeys(model.categorical, pl.String)}
    return pl.DataFrame([pl.Series(name, [values[name]], kinds[name]) for name in kinds if name in values])
