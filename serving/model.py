"""The KServe model of a use case: the three protocols in front of one predictor.

Owns: KServe's interface, and that explanations cannot crowd out predictions. Does not own: the wire formats
(`protocol`), the prediction (`predictor`).
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

from serving.lane import Lane
from serving.predictor import Job, Predictor, Unavailable
from serving.protocol import answer_v1, answer_v2, input_tensors, instances_of_v1, instances_of_v2, output_tensors
from throughline.evaluation import background
from throughline.evaluation.explain import AT_ONCE
from throughline.foundation.errors import ThroughlineError
from throughline.usecase.requests import BadRequest, parse_instances

EXPLAIN_DEADLINE_S = 10.0  # from when it was asked, waiting included
EXPLANATIONS_WAITING = 8

Result = TypeVar("Result")


class _Turns:
    """Explanations one at a time in a thread, whatever the use case: each takes a core that predictions need."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(1)
        self._asked = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Raises `Unavailable` when too many wait. Called in the server's event loop only."""
        if self._asked > EXPLANATIONS_WAITING:
            raise Unavailable(f"{EXPLANATIONS_WAITING} explanations are waiting already: ask again later.")
        self._asked += 1
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._asked -= 1


_TURNS = _Turns()


class UseCaseModel(Model):
    """Ready as long as it is registered: it is made of a predictor that was loaded and warmed."""

    def __init__(self, predictor: Predictor, lane: Lane[tuple[Predictor, Job], Any], folder: Path) -> None:
        """`folder`: the use case's in the serving home, where what explanations compare with is found."""
        super().__init__(predictor.usecase.name)
        self.predictor = predictor
        self.ready = True
        self._lane = lane
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
        job = Job(parse_instances(usecase, instances))
        predictions = await self._lane.submit((self.predictor, job))
        return answer_v2(payload, predictions) if isinstance(payload, InferRequest) else answer_v1(predictions)

    async def explain(self, payload: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """V1 only: what a prediction would say now without being one, and `explanations`, the largest first."""
        if headers is not None:
            headers.clear()  # KServe answers `:explain` with the headers of the request, the caller's token among them
        usecase, until = self.predictor.usecase, time.monotonic() + EXPLAIN_DEADLINE_S
        instances = instances_of_v1(payload)
        if len(instances) > AT_ONCE:
            raise BadRequest("instances", f"has {len(instances)} entries: at most {AT_ONCE} are explained at once")
        frame = parse_instances(usecase, instances)
        return {"predictions": await _TURNS.run(partial(self._explain, frame, until))}

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
