"""Predictions and explanations of one revision: features, score, decision, event.

Owns: the path from typed requests to answers. Does not own: protocols, the feature store, the inference log, how a
score is explained (`throughline.evaluation.explain`).
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from serving.protocol import Prediction
from throughline.evaluation.background import frame_of
from throughline.evaluation.explain import explain
from throughline.events.schema import iso
from throughline.foundation.clock import Clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.models.served_model import ServedModel
from throughline.records import Background, Revision
from throughline.registry import statement
from throughline.registry.verification import verified
from throughline.usecase import UseCase
from throughline.usecase.requests import BadRequest, example_instance, parse_instances, row_keys

if TYPE_CHECKING:
    from throughline.featurestore.online import FeatureRead

log = logging.getLogger(__name__)


# logs the predictions of one request: per prediction the fields of `InferenceEvent`, without source and sequence
Publish = Callable[[Sequence[dict[str, Any]]], None]


class Reader(Protocol):
    """The part of `throughline.featurestore.online.FeatureReader` that a predictor uses."""

    def read(self, requests: pl.DataFrame) -> FeatureRead: ...

    def reload(self) -> None: ...


class Unavailable(ThroughlineError):
    """The request is good, but cannot be answered now."""


@dataclass(frozen=True)
class PendingRequest:
    """Rows of one request, and when it arrived (`time.perf_counter`)."""

    frame: pl.DataFrame
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, eq=False)
class Predictor:
    """One loaded revision; immutable, so that replacing it is one assignment.

    `observe` counts a prediction, by its revision, decision, flags and the ages of its features in seconds.
    """

    usecase: UseCase
    revision: Revision
    served: ServedModel
    reader: Reader
    clock: Clock
    publish: Publish
    observe: Callable[[Revision, str, list[str], dict[str, float | None]], None]
    loaded_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def warm_up(self) -> None:
        """Score the declaration's own example without logging it: a model and features that do not fit are refused."""
        try:
            example = parse_instances(self.usecase, [example_instance(self.usecase)])
        except BadRequest:
            return  # the declaration gives no complete example
        try:
            score = self.served.score(self.reader.read(example).values)
        except Exception as error:
            raise ThroughlineError(f"the example request cannot be answered: {_one_line(error)}") from error
        if not _is_probability(score[0]):
            raise ThroughlineError(f"the example request is scored {score[0]}, not a probability")

    def predict(self, requests: Sequence[PendingRequest]) -> list[list[Prediction] | Exception]:
        """Predictions per request; where a batch fails each request is tried by itself, and gets its own error."""
        try:
            return list(self._predict(requests))
        except Exception as error:  # the boundary of a request: it gets the error
            if len(requests) > 1:
                return [result for request in requests for result in self.predict([request])]
            if not isinstance(error, ThroughlineError):
                log.exception("Prediction of %s failed", self.usecase.name)
                error = self._unavailable()
            return [error]

    def explain(self, frame: pl.DataFrame, background: Background, until: float) -> list[dict[str, Any]]:
        """The explanation of each row's score of now; nothing is logged. `until`: a deadline on `time.monotonic`.

        Raises `Unavailable` after the deadline, and when the background is another model's.
        """
        try:
            against = frame_of(background, self.served, self.revision.sha256)
            values = self.reader.read(frame).values
            explanations = [explain(self.served, values[row], against, until=until) for row in range(frame.height)]
        except ThroughlineError as error:
            raise Unavailable(str(error)) from error
        except Exception as error:
            log.exception("Explanation of %s failed", self.usecase.name)
            raise self._unavailable() from error
        return [
            {
                "model_name": self.revision.name,
                "model_version": self.revision.version,
                "decision": self.usecase.prediction.decision.decide(explanation.score),
                **asdict(explanation),
            }
            for explanation in explanations
        ]

    def _predict(self, pending: Sequence[PendingRequest]) -> list[list[Prediction]]:
        """Read the features of all requests at once, score each by itself: a score must not depend on the batch."""
        frame = pending[0].frame if len(pending) == 1 else pl.concat([each.frame for each in pending])
        read = self.reader.read(frame)
        outside = self.served.outside_domain(read.values)
        starts = np.cumsum([0, *(each.frame.height for each in pending)])
        scores = [self.served.score(read.values[start:end]) for start, end in itertools.pairwise(starts)]
        if not all(map(_is_probability, np.concatenate(scores))):
            raise Unavailable(f"The model {self.revision.revision} of {self.usecase.name} gave no probability.")
        keys = row_keys(self.usecase, frame)
        features = read.values.select([*self.served.numeric, *self.served.categorical]).to_dicts()
        requests = frame.to_dicts()
        now, wall = self.clock.now(), datetime.now(UTC)
        results, row = [], 0
        events: list[dict[str, Any]] = []
        for each, own_scores in zip(pending, scores, strict=True):
            latency_ms = (time.perf_counter() - each.arrived) * 1000
            predictions = []
            for score in own_scores:
                prediction = self._prediction(float(score))
                flags = [
                    *(f"unknown_entity:{name}" for name in read.unknown[row]),
                    *(f"expired:{view}" for view, gone in read.expired.items() if gone[row]),
                    *(f"outside_domain:{name}" for name in outside[row]),
                ]
                times = {view: instants[row] for view, instants in read.event_times.items()}
                data: dict[str, Any] = {
                    **asdict(prediction),
                    "subject": self.usecase.name,
                    "time": now,
                    "wall_time": wall,
                    "revision": self.revision.revision,
                    "role": self.revision.role,
                    "model_sha256": self.revision.sha256,
                    "row_key": keys[row],
                    "request": _plain(requests[row]),
                    "features": _plain(features[row]),
                    "feature_times": times,
                    "flags": flags,
                    "latency_ms": latency_ms,
                }
                data["id"] = data.pop("prediction_id")
                events.append(data)
                ages = {view: (now - at).total_seconds() if at else None for view, at in times.items()}
                self.observe(self.revision, prediction.decision, flags, ages)
                predictions.append(prediction)
                row += 1
            results.append(predictions)
        self.publish(events)
        return results

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"Features or score of {self.usecase.name} are not available now: see the log of the model server."
        )

    def _prediction(self, score: float) -> Prediction:
        return Prediction(
            prediction_id=str(uuid.uuid4()),
            model_name=self.revision.name,
            model_version=self.revision.version,
            score=score,
            decision=self.usecase.prediction.decision.decide(score),
        )


def load_served(settings: Settings, folder: Path, revision: Revision) -> ServedModel:
    """The model of a revision: its release and its folder's signature verified, its digest checked on the bytes that
    are run.

    Raises `ThroughlineError`; the refusal of a signature is recorded in the history, too.
    """
    statement.require(settings, revision)
    return ServedModel.load(verified(settings, revision, (folder / revision.file).parent), revision.sha256)


def _is_probability(score: Any) -> bool:
    return bool(0 <= score <= 1)  # false for NaN


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither instants nor NaN."""
    unset = {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: iso(value) if isinstance(value, datetime) else value for name, value in row.items()} | unset


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
