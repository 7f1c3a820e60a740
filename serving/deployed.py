"""The revisions that serve a use case together: routing, answering, copies to shadows.

Owns: which predictor gets a request, and in which thread it runs. Does not own: loading (`repository.py`), the draw
(`router.py`), the prediction (`predictor.py`).

A small request to the only revision is answered in the event loop: a thread costs more than the prediction. Beside
another revision each has a thread of its own, so that a slow one holds up nobody and their times can be compared.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from serving.batching import Batcher
from serving.predictor import SHADOW, TRAFFIC, Call, Predictor
from serving.protocol import Prediction
from serving.router import Router
from throughline.foundation.errors import ThroughlineError
from throughline.records import RevisionSet
from throughline.usecase.requests import BadRequest, Columns

log = logging.getLogger(__name__)

# A request sent again with the same id gets predictions with the same ids: its events are logged once.
REQUEST_HEADER = "x-throughline-request-id"
REVISION_HEADER, TRAFFIC_HEADER = "x-throughline-revision", "x-throughline-traffic"
SMALL = 16  # rows that are answered in the event loop
QUICK_S = 0.005  # and the time that one may take there
COPIES = 64  # that wait for the shadows; more are dropped


class VersionNotServed(ThroughlineError):
    """A model version that no revision has."""

    def __init__(self, version: str, served: list[str]) -> None:
        wanted = ascii(version)[:20]
        super().__init__(
            f"model_version: {wanted} is not served, {', '.join(served)} is; leave it out to get what is served"
        )


class Deployed:
    """The predictors of a revision set, by revision; immutable, so that replacing it is one assignment."""

    def __init__(
        self,
        revisions: RevisionSet,
        predictors: Mapping[str, Predictor],
        quick: bool,
        batch: int,
        dropped: Callable[[str], None],
        traffic: str | None = None,
    ) -> None:
        """quick: a request of the stable revision takes less than `QUICK_S` in this process; batch: so many requests
        that wait at the same time are read together; traffic: the class of all requests, whatever they name."""
        self.revisions = revisions
        self.predictors = predictors
        self._router = Router(revisions)
        self._traffic = traffic
        self._in_loop = quick and len(predictors) == 1
        self._batchers: dict[str, Batcher[Call, list[Prediction]]] = {
            revision: Batcher(predictor.predict, batch) for revision, predictor in predictors.items()
        }
        self._shadows = _Shadows(predictors, dropped) if self._router.shadows else None

    def require_version(self, version: str) -> str:
        """A revision of this model version, the stable one where it is. Raises `VersionNotServed`."""
        versions = {str(one.revision.version): name for name, one in self.predictors.items()}
        versions[str(self.stable.revision.version)] = self.stable.revision.revision
        if version not in versions:
            raise VersionNotServed(version, list(versions))
        return versions[version]

    @property
    def stable(self) -> Predictor:
        return self.predictors[self.revisions.stable.revision]

    async def answer(
        self, columns: Columns, headers: Mapping[str, str], arrived: float, version: str | None = None
    ) -> list[Prediction]:
        """Predictions of the rows of a request, in order. version: the only model version that may answer.

        Raises `BadRequest` for a header or version that is not served, and what the predictor raises.
        """
        rows = len(next(iter(columns.values())))
        traffic = self._traffic or headers.get(TRAFFIC_HEADER, TRAFFIC[0])
        if traffic not in TRAFFIC:
            raise BadRequest(TRAFFIC_HEADER, f"is {ascii(traffic)[:40]}: send one of {', '.join(TRAFFIC)}")
        if traffic != SHADOW and self._shadows:
            for revision in self._router.copies():
                self._shadows.add(revision, Call(columns, rows, SHADOW, arrived))
        ids = _ids(headers.get(REQUEST_HEADER), rows)
        chosen = self._chosen(columns, rows, headers.get(REVISION_HEADER), version)
        if len(set(chosen)) == 1:
            return await self._run(chosen[0], Call(columns, rows, traffic, arrived, ids))
        answers: list[Any] = [None] * rows
        for revision in dict.fromkeys(chosen):
            places = [place for place, one in enumerate(chosen) if one == revision]
            own = [ids[place] for place in places] if ids else None
            part = {name: [values[place] for place in places] for name, values in columns.items()}
            for place, prediction in zip(
                places, await self._run(revision, Call(part, len(places), traffic, arrived, own)), strict=True
            ):
                answers[place] = prediction
        return answers

    def close(self) -> None:
        """Answer what waits, then end the threads."""
        for batcher in self._batchers.values():
            batcher.close()
        if self._shadows:
            self._shadows.close()

    def _chosen(self, columns: Columns, rows: int, wanted: str | None, version: str | None) -> list[str]:
        """The revision of each row."""
        if wanted is not None and wanted not in self.predictors:
            raise BadRequest(
                REVISION_HEADER, f"{ascii(wanted)[:40]} is not served: these are {', '.join(self.predictors)}"
            )
        if version is not None:
            named = self.require_version(version)
            wanted = wanted or named
        if wanted is not None:
            return [wanted]
        sticky = self._router.sticky
        return [self._router.choose(key) for key in columns[sticky.key]] if sticky else [self._router.choose()]

    async def _run(self, revision: str, call: Call) -> list[Prediction]:
        if not (self._in_loop and call.rows <= SMALL):
            return await self._batchers[revision].submit(call)
        (result,) = self.predictors[revision].predict([call])
        if isinstance(result, Exception):
            raise result
        return result


def _ids(request: str | None, rows: int) -> list[str] | None:
    """Prediction ids that follow from the id of a request. Raises `BadRequest`."""
    if request is None:
        return None
    try:
        known = uuid.UUID(request)
    except ValueError:
        raise BadRequest(REQUEST_HEADER, f"is {ascii(request)[:60]}: send a UUID") from None
    return [str(uuid.uuid5(known, str(row))) for row in range(rows)]


class _Shadows:
    """Scores copies of requests in a thread, with the shadows' answers logged and nothing returned."""

    def __init__(self, predictors: Mapping[str, Predictor], dropped: Callable[[str], None]) -> None:
        self._predictors = predictors
        self._dropped = dropped
        self._queue: queue.Queue[tuple[str, Call] | None] = queue.Queue(COPIES)
        self._thread = threading.Thread(target=self._run, name="shadows", daemon=True)
        self._thread.start()

    def add(self, revision: str, call: Call) -> None:
        try:
            self._queue.put_nowait((revision, call))
        except queue.Full:
            self._dropped(revision)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            revision, call = item
            # what waited in the queue is not the shadow's time
            self._predictors[revision].predict([Call(call.columns, call.rows, SHADOW, time.perf_counter())])
