"""The KServe model of a use case: the three protocols in front of its revisions.

Owns: KServe's interface, and the limits on explanations. Does not own: the wire formats (`protocol.py`), which revision
answers (`deployed.py`), the prediction (`predictor.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from kserve.model import Model
from kserve.protocol.infer_type import InferRequest, InferResponse

from serving.deployed import Deployed
from serving.predictor import Predictor, Unavailable
from serving.protocol import (
    check_outputs,
    input_tensors,
    instances_of_v1,
    instances_of_v2,
    output_tensors,
    response_v1,
    response_v2,
)
from throughline.evaluation import background
from throughline.evaluation.explain import AT_ONCE
from throughline.foundation.errors import ThroughlineError
from throughline.usecase import UseCase
from throughline.usecase.requests import BadRequest, Columns, parse_columns

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
    """Ready as long as it is registered: its revisions were loaded and warmed."""

    def __init__(self, usecase: UseCase, deployed: Deployed, folder: Path) -> None:
        """`folder`: the use case's in the serving home, where what explanations compare with is found."""
        super().__init__(usecase.name)
        self.usecase = usecase
        self.deployed = deployed
        self.ready = True
        self._folder = folder

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferResponse:
        arrived = time.perf_counter()
        if isinstance(payload, InferRequest):
            return await self.predict_v2(payload, headers or {}, arrived, payload.model_version or None)
        return await self.predict_v1(payload, headers or {}, arrived)

    async def predict_v1(self, body: Any, headers: Mapping[str, str], arrived: float) -> dict[str, Any]:
        """A body with instances -> one with predictions. `arrived`: `time.perf_counter`."""
        columns = parse_columns(self.usecase, instances_of_v1(body))
        self._parsed(arrived)
        return response_v1(await self.deployed.answer(columns, headers, arrived))

    async def predict_v2(
        self, request: InferRequest, headers: Mapping[str, str], arrived: float, version: str | None
    ) -> InferResponse:
        """Input tensors -> output tensors, by the model version that is wanted where one is."""
        check_outputs(request)
        columns = parse_columns(self.usecase, instances_of_v2(self.usecase, request))
        self._parsed(arrived)
        return response_v2(request, await self.deployed.answer(columns, headers, arrived, version))

    async def explain(self, payload: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """V1 only: the stable revision's score and decision of now, not logged as a prediction, and `explanations`, the
        largest first."""
        if headers is not None:
            headers.clear()  # KServe answers `:explain` with the headers of the request, the caller's token among them
        until = time.monotonic() + EXPLAIN_DEADLINE_S
        instances = instances_of_v1(payload)
        if len(instances) > AT_ONCE:
            raise BadRequest("instances", f"has {len(instances)} entries: at most {AT_ONCE} are explained at once")
        columns = parse_columns(self.usecase, instances)
        return {"predictions": await _EXPLANATIONS.run(partial(self._explain, columns, until))}

    def _explain(self, columns: Columns, until: float) -> list[dict[str, Any]]:
        predictor: Predictor = self.deployed.stable
        try:
            against = background.read(background.served_path(self._folder, predictor.revision.sha256))
        except ThroughlineError as error:
            raise Unavailable(str(error)) from error
        if against is None:
            raise Unavailable(
                f"Nothing to compare with was deployed with {predictor.revision.revision} of {self.name}: "
                "evaluate and deploy the version again to have its predictions explained."
            )
        return predictor.explain(columns, against, until)

    def _parsed(self, arrived: float) -> None:
        self.deployed.stable.metrics.took(parse=time.perf_counter() - arrived)

    def get_input_types(self) -> list[dict[str, Any]]:
        return input_tensors(self.usecase)

    def get_output_types(self) -> list[dict[str, Any]]:
        return output_tensors()
