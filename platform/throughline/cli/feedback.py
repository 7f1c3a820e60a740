"""`throughline feedback PREDICTION_ID VALUE`: reports the outcome of a prediction to the collector.

Owns: which use case the report is for. Does not own: which reports are accepted (`throughline.events.feedback`).
"""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer

from throughline.cli.arguments import AsJson, PredictionId
from throughline.cli.output import emit, out
from throughline.events.log import PredictionLog
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings, load_settings
from throughline.usecase import load_usecases

_VALUES = {"0": 0, "1": 1, "false": 0, "true": 1}


def _parse_value(text: str) -> int:
    if text.lower() not in _VALUES:
        raise typer.BadParameter(f"{text!r} is no outcome: give 0, 1, true or false")
    return _VALUES[text.lower()]


def feedback(
    prediction_id: PredictionId,
    value: Annotated[int, typer.Argument(parser=_parse_value, metavar="VALUE", help="0, 1, true or false.")],
    usecase: Annotated[
        str | None, typer.Option(help="The use case of the prediction; by default the one that logged it.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="When it was seen, with an offset: 2013-04-01T12:00:00Z; now when not given.")
    ] = None,
    source: Annotated[str, typer.Option(help="Who saw it; a source reports once for each time.")] = "cli",
    as_json: AsJson = False,
) -> None:
    """Report the outcome of a prediction: whether what it predicted happened."""
    settings = load_settings()
    name = usecase or _usecase_of(settings, prediction_id)
    report = {"prediction_id": prediction_id, "value": value, "time": time, "source": source}
    _send(settings, name, report)
    emit(
        as_json,
        {"usecase": name, **report},
        lambda: out().print(f"Reported {value} for prediction {prediction_id} of {name}; it is joined with the log."),
    )


def _usecase_of(settings: Settings, prediction_id: str) -> str:
    """The only use case, or the one that logged the prediction. Raises when none did: it may be on its way."""
    names = list(load_usecases())
    if len(names) == 1:
        return names[0]
    for name in names:
        try:
            PredictionLog(settings, name).find(prediction_id)
            return name
        except ThroughlineError:
            continue
    raise ThroughlineError(
        f"Prediction {prediction_id} is not logged yet, so its use case is unknown: give --usecase, one of "
        f"{', '.join(names)}."
    )


def _send(settings: Settings, usecase: str, report: dict[str, Any]) -> None:
    try:
        with client_of(settings, "collector") as collector:
            answer = collector.post(f"/v1/feedback/{usecase}", json=report)
    except httpx.HTTPError as error:
        raise ThroughlineError(
            f"The collector at {settings.url('collector')} does not answer ({error}): start it with `throughline up`."
        ) from error
    if answer.is_error:
        try:
            reason = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            reason = f"HTTP {answer.status_code}"
        raise ThroughlineError(f"The report was refused: {reason}.")
