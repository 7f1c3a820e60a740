"""The KServe model of a use case: the three protocols in front of one predictor.

Owns: KServe's interface, and the limits on explanations. Does not own: the wire formats (`protocol.py`), the prediction
(`predictor.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from anyio import CapacityLimiter, to_thread
from kserve.errors import InvalidInput
from kserve.model import Model
from kserve.protocol.infer_type import InferRequest, InferResponse

from serving.batching import Batcher
from serving.predictor import PendingRequest, Predictor, Unavailable
from serving.protocol import input_tensors, instances_of_v1, instances_of_v2, output_tensors, response_v1, response_v2
from throughline.evaluation import background
from throughline.evaluation.explain import AT_ONCE
from throughline.foundation.errors import ThroughlineError
from throughline.usecase.requests import BadRequest, parse_instances

EXPLAIN_DEADLINE_S = 10.0  # from the arrival of the request, waiting included
EXPLANATIONS_WAITING = 8

Result = TypeVar("Result")


class _ExplanationQueue:
    """Runs explanations of all use cases one at a time in a thread: each takes a core that predictions need."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(1)
        self._waiting = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises `Unavailable` when too many wait. Called in the server's event loop only."""
        if self._waiting > EXPLANATIONS_WAITING:
            raise Unavailable(f"{EXPLANATIONS_WAITING} explanations are waiting already: send the request again later.")
        self._waiting += 1
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._waiting -= 1


_EXPLANATIONS = _ExplanationQueue()


class UseCaseModel(Model):
    """Ready as long as it is registered: it is made of a predictor that was loaded and warmed."""

    def __init__(
        self, predictor: Predictor, batcher: Batcher[tuple[Predictor, PendingRequest], Any], folder: Path
    ) -> None:
        """`folder`: the use case's in the serving home, where what explanations compare with is found."""
        super().__init__(predictor.usecase.name)
        self.predictor = predictor
        self.ready = True
        self._batcher = batcher
        self._folder = folder

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        usecase = self.predictor.usecase
        if not isinstance(payload, InferRequest):
            instances = instances_of_v1(payload)
        else:
            if payload.model_version and payload.model_version != str(self.predictor.revision.version):
                raise InvalidInput(
                    f"model_version: {ascii(payload.model_version)[:20]} is not served, "
                    f"{self.predictor.revision.version} is; leave it out to get what is served"
                )
            instances = instances_of_v2(usecase, payload)
        pending = PendingRequest(parse_instances(usecase, instances))
        predictions = await self._batcher.submit((self.predictor, pending))
        return response_v2(payload, predictions) if isinstance(payload, InferRequest) else response_v1(predictions)

    async def explain(self, payload: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """V1 only: the score and decision of now, not logged as a prediction, and `explanations`, the largest first."""
        if headers is not None:
            headers.clear()  # KServe answers `:explain` with the headers of the request, the caller's token among them
        usecase, until = self.predictor.usecase, time.monotonic() + EXPLAIN_DEADLINE_S
        instances = instances_of_v1(payload)
        if len(instances) > AT_ONCE:
            raise BadRequest("instances", f"has {len(instances)} entries: at most {AT_ONCE} are explained at once")
        frame = parse_instances(usecase, instances)
        return {"predictions": await _EXPLANATIONS.run(partial(self._explain, frame, until))}

    def _explain(self, frame: pl.DataFrame, until: float) -> list[dict[str, Any]]:
        try:
            against = background.read(background.served_path(self._folder, self.predictor.revision.sha256))
        except ThroughlineError as error:
            raise Unavailable(str(error)) from error
        if against is None:
            raise Unavailable(
                f"Nothing to compare with was deployed with {self.predictor.revision.revision} of {self.name}: "
                "evaluate and deploy the version again to have its predictions explained."
            )
        return self.predictor.explain(frame, against, until)

    def get_input_types(self) -> list[dict[str, Any]]:
        return input_tensors(self.predictor.usecase)

    def get_output_types(self) -> list[dict[str, Any]]:
        return output_tensors()
