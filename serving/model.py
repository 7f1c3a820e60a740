"""The KServe model of a use case: the three protocols in front of one predictor.

Owns: KServe's interface. Does not own: the wire formats (`protocol`), the prediction (`predictor`).
"""

from __future__ import annotations

from typing import Any

from kserve import InferRequest, InferResponse, Model
from kserve.errors import InvalidInput

from serving.lane import Lane
from serving.predictor import Job, Predictor
from serving.protocol import answer_v1, answer_v2, input_tensors, instances_of_v1, instances_of_v2, output_tensors
from throughline.requests import parse_instances


class UseCaseModel(Model):
    """Ready as long as it is registered: it is made of a predictor that was loaded and warmed."""

    def __init__(self, predictor: Predictor, lane: Lane[tuple[Predictor, Job], Any]) -> None:
        super().__init__(predictor.usecase.name)
        self.predictor = predictor
        self.ready = True
        self._lane = lane

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

    def get_input_types(self) -> list[dict[str, Any]]:
        return input_tensors(self.predictor.usecase)

    def get_output_types(self) -> list[dict[str, Any]]:
        return output_tensors()
