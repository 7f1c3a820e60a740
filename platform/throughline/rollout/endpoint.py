"""Client of the model server: predictions and explanations over REST V1, and requests made from the spine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
import polars as pl

from throughline.evaluation.explain import AT_ONCE
from throughline.featurestore.spine import as_known
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import pin, read
from throughline.usecase import UseCase

BATCH = 500


def example_request(settings: Settings, usecase: UseCase, now: datetime) -> dict[str, Any]:
    """The first row of the spine that can be predicted at `now` (UTC) with the declared lead. Raises without one."""
    due = requests_between(settings, usecase, now, None)
    if due.is_empty():
        raise ThroughlineError(
            f"Nothing of {usecase.name} is known to happen after {now.isoformat()} plus {usecase.prediction.lead}: "
            "bring newer data (`throughline advance`)."
        )
    return as_instances(usecase, due.head(1))[0]


def requests_between(settings: Settings, usecase: UseCase, start: datetime, end: datetime | None) -> pl.DataFrame:
    """Request fields of the spine rows whose prediction time lies in [start, end) (UTC), in that order."""
    rows = read(settings, pin(settings, f"{usecase.name}/features/{usecase.features.spine}"))
    due = rows.filter(pl.col("prediction_time") >= start)
    if end is not None:
        due = due.filter(pl.col("prediction_time") < end)
    ordered = as_known(usecase, due).sort("prediction_time", *usecase.prediction.key)
    return ordered.select("prediction_time", *usecase.request).collect()


def as_instances(usecase: UseCase, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as the instances of a request: plain JSON, instants in ISO 8601."""
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in rows.select(list(usecase.request)).to_dicts()
    ]


def predict(settings: Settings, usecase: UseCase, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions of the live endpoint, in order. Raises one line with the server's reason for a refusal."""
    return _send(settings, usecase, "predict", instances, BATCH)


def explain(settings: Settings, usecase: UseCase, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores and their explanations by the live endpoint, in order; nothing is logged. Raises as `predict` does."""
    return _send(settings, usecase, "explain", instances, AT_ONCE)


def _send(
    settings: Settings, usecase: UseCase, verb: str, instances: Sequence[dict[str, Any]], batch: int
) -> list[dict[str, Any]]:
    path = f"/v1/models/{usecase.name}:{verb}"
    predictions: list[dict[str, Any]] = []
    with client_of(settings, "model_http") as client:
        for first in range(0, len(instances), batch):
            try:
                response = client.post(path, json={"instances": list(instances[first : first + batch])})
            except httpx.HTTPError as error:
                raise ThroughlineError(
                    f"The model server at {settings.url('model_http')} does not answer ({error}): "
                    "see `throughline status`, start it with `throughline up`."
                ) from error
            if response.is_error:
                raise ThroughlineError(f"The model server refused the request: {error_of(response)}")
            predictions += response.json()["predictions"]
    return predictions


def error_of(response: httpx.Response) -> str:
    """The reason of a refusal by the model server, in one line."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
