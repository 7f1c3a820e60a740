"""Predictions and explanations of one revision: features, score, decision, event.

Owns: the path from a request's columns to answers. Does not own: protocols, the feature store, which revision answers,
the inference log, how a score is explained (`throughline.evaluation.explain`). No data frame is made on this path.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as field_of
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from serving.loading import Loaded
from serving.metrics import RevisionMetrics
from serving.protocol import Prediction
from throughline.evaluation.background import frame_of as background_frame
from throughline.evaluation.explain import explain
from throughline.featurestore.online import FeatureRead
from throughline.foundation.clock import Clock
from throughline.foundation.errors import ThroughlineError
from throughline.models.served_model import ServedModel
from throughline.records import Background, Revision
from throughline.usecase import UseCase
from throughline.usecase.requests import BadRequest, Columns, example_instance, instant_of, parse_columns, row_key

if TYPE_CHECKING:
    import polars as pl

log = logging.getLogger(__name__)

PRODUCTION, SHADOW = "production", "shadow"
TRAFFIC = (PRODUCTION, "load_test", SHADOW, "test")


class Reader(Protocol):
    """The part of `throughline.featurestore.online.FeatureReader` that a predictor uses."""

    @property
    def near(self) -> bool: ...

    def read(self, columns: Columns, at: datetime | None = None) -> FeatureRead: ...

    def reload(self) -> None: ...


class Unavailable(ThroughlineError):
    """The request is good, but cannot be answered now."""


@dataclass(frozen=True)
class Call:
    """The rows of one request, its traffic class, and when it arrived (`time.perf_counter`).

    ids: of its predictions, where the caller's request decides them; otherwise they are random.
    """

    columns: Columns
    rows: int
    traffic: str = PRODUCTION
    arrived: float = field_of(default_factory=time.perf_counter)
    ids: list[str] | None = None


@dataclass(frozen=True, eq=False)
class Predictor:
    """One revision with its loaded model; immutable, so that replacing it is one assignment.

    `publish` logs events, given as the fields of `InferenceEvent` without source and number.
    """

    usecase: UseCase
    revision: Revision
    loaded: Loaded
    reader: Reader
    clock: Clock
    publish: Callable[[Sequence[dict[str, Any]]], None]
    metrics: RevisionMetrics

    @cached_property
    def _decide(self) -> Callable[[float], str]:
        return self.usecase.prediction.decision.decide

    @cached_property
    def _numeric(self) -> tuple[str, ...]:
        return tuple(self.served.numeric)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return (*self.served.numeric, *self.served.categorical)

    @property
    def served(self) -> ServedModel:
        return self.loaded.served

    def warm_up(self) -> float | None:
        """Score the declaration's own example without logging it: a model and features that do not fit are refused.

        Returns the time of a second pass in seconds; None when the declaration gives no complete example.
        """
        try:
            example = parse_columns(self.usecase, [example_instance(self.usecase)])
        except BadRequest:
            return None
        try:
            self.served.run(*self._arrays(self.reader.read(example)))
            start = time.perf_counter()
            score = self.served.run(*self._arrays(self.reader.read(example)))
        except Exception as error:
            raise ThroughlineError(f"the example request cannot be answered: {_one_line(error)}") from error
        if not _are_probabilities(score.tolist()):
            raise ThroughlineError(f"the example request is scored {score[0]}, not a probability")
        return time.perf_counter() - start

    def predict(self, calls: Sequence[Call]) -> list[list[Prediction] | Exception]:
        """Predictions per call; where a batch fails each call is tried by itself, and gets its own error."""
        try:
            return list(self._predict(calls))
        except Exception as error:  # the boundary of a request: it gets the error
            if len(calls) > 1:
                return [result for call in calls for result in self.predict([call])]
            self.metrics.failed(calls[0].traffic)
            if not isinstance(error, ThroughlineError):
                log.exception("Prediction of %s failed", self.usecase.name)
                error = self._unavailable()
            return [error]

    def explain(self, columns: Columns, background: Background, until: float) -> list[dict[str, Any]]:
        """The explanation of each row's score of now; nothing is logged. `until`: a deadline on `time.monotonic`.

        Raises `Unavailable` after the deadline, and when the background is another model's.
        """
        try:
            against = background_frame(background, self.served, self.revision.sha256)
            values: pl.DataFrame = self.reader.read(columns).frame
            explanations = [explain(self.served, values[row], against, until=until) for row in range(values.height)]
        except ThroughlineError as error:
            raise Unavailable(str(error)) from error
        except Exception as error:
            log.exception("Explanation of %s failed", self.usecase.name)
            raise self._unavailable() from error
        return [
            {
                "model_name": self.revision.name,
                "model_version": self.revision.version,
                "revision": self.revision.revision,
                "decision": self.usecase.prediction.decision.decide(explanation.score),
                **asdict(explanation),
            }
            for explanation in explanations
        ]

    def _arrays(self, read: FeatureRead) -> tuple[np.ndarray, np.ndarray]:
        """What the model takes, the same as of the frame of the read."""
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as in a frame
            numeric = read.matrix(self._numeric).astype(np.float32)
        return numeric, self.served.words([read.column(name) for name in self.served.categorical], read.rows)

    def _predict(self, calls: Sequence[Call]) -> list[list[Prediction]]:
        """Read the features of all calls at once, score each by itself: a score must not depend on the batch."""
        start = time.perf_counter()
        columns = calls[0].columns if len(calls) == 1 else _together(calls)
        now, wall = self.clock.now(), datetime.now(UTC)
        read = self.reader.read(columns, now)
        numeric, words = self._arrays(read)
        outside = self.served.outside(numeric, words)
        read_at = time.perf_counter()
        ends = list(itertools.accumulate(call.rows for call in calls))
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        scores = [self.served.run(numeric[first:end], words[first:end]).tolist() for first, end in spans]
        if not all(map(_are_probabilities, scores)):
            raise Unavailable(f"The model {self.revision.revision} of {self.usecase.name} gave no probability.")
        scored_at = time.perf_counter()
        answers: list[list[Prediction]] = []
        used: list[list[tuple[Prediction, Mapping[str, datetime | None]]]] = []
        events: list[dict[str, Any]] = []
        for call, (first, end), own in zip(calls, spans, scores, strict=True):
            latency_ms = (time.perf_counter() - call.arrived) * 1000
            predictions: list[tuple[Prediction, Mapping[str, datetime | None]]] = []
            for row, score in zip(range(first, end), own, strict=True):
                known = call.ids[row - first] if call.ids else _random_id()
                prediction = self._prediction(known, score, self._flags(columns, read, outside[row], row, now))
                times = read.event_times(row)
                predictions.append((prediction, times))
                events.append(
                    {
                        "id": prediction.prediction_id,
                        "subject": self.usecase.name,
                        "time": now,
                        "wall_time": wall,
                        "model_name": prediction.model_name,
                        "model_version": prediction.model_version,
                        "model_sha256": self.revision.sha256,
                        "revision": prediction.revision,
                        "role": self.revision.role,
                        "traffic": call.traffic,
                        "row_key": row_key(self.usecase, columns, row),
                        "request": self._request(columns, row),
                        "features": read.values(row, self._names),
                        "feature_times": times,
                        "flags": prediction.flags,
                        "score": score,
                        "decision": prediction.decision,
                        "latency_ms": latency_ms,
                    }
                )
            used.append(predictions)
            answers.append([prediction for prediction, _ in predictions])
        self.publish(events)
        done = time.perf_counter()
        self.metrics.took(features=read_at - start, inference=scored_at - read_at, log=done - scored_at)
        for call, predictions in zip(calls, used, strict=True):
            self.metrics.predicted(call.traffic, predictions, now, done - call.arrived)
        return answers

    def _flags(self, columns: Columns, read: FeatureRead, outside: list[str], row: int, now: datetime) -> list[str]:
        flags = [*read.flags(row), *(f"outside_domain:{name}" for name in outside)]
        declared = self.usecase.prediction
        if (at := columns[declared.time_field][row]) is not None and not declared.is_timely(instant_of(at), now):
            flags.append(f"outside_domain:{declared.time_field}")
        return flags

    def _request(self, columns: Columns, row: int) -> dict[str, Any]:
        values = {name: columns[name][row] for name in self.usecase.request}
        for name, field in self.usecase.request.items():
            if field.type == "timestamp" and values[name] is not None:
                values[name] = instant_of(values[name])
        return values

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"Features or score of {self.usecase.name} are not available now: see the log of the model server."
        )

    def _prediction(self, known: str, score: float, flags: list[str]) -> Prediction:
        return Prediction(
            prediction_id=known,
            model_name=self.revision.name,
            model_version=self.revision.version,
            revision=self.revision.revision,
            score=score,
            decision=self._decide(score),
            flags=flags,
        )


def _random_id() -> str:
    """A random UUID (version 4), in a third of the time of `uuid.uuid4`."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"


def _together(calls: Sequence[Call]) -> Columns:
    return {name: [value for call in calls for value in call.columns[name]] for name in calls[0].columns}


def _are_probabilities(scores: list[float]) -> bool:
    return all(0 <= score <= 1 for score in scores)  # false for NaN


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
