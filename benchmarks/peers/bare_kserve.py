"""KServe's endpoints over a model that returns a constant: the ceiling of any model in that framework.

Owns: that process. As lean as KServe can be had, so that the comparison is with its best: no request logging, no
access log, no timing middleware, the same listener and event loop as our server.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import grpc
import uvicorn
from fastapi import FastAPI
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints


class Trivial(Model):
    """Answers one constant per instance, in the shape of our predictions."""

    def __init__(self) -> None:
        super().__init__("trivial")
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        if isinstance(payload, InferRequest):
            count = payload.inputs[0].shape[0]
            return InferResponse(payload.id or "0", self.name, [InferOutput("score", [count], "FP64", [0.5] * count)])
        return {
            "predictions": [
                {"prediction_id": "0", "model_name": self.name, "model_version": 1, "score": 0.5, "decision": "none"}
                for _ in payload["instances"]
            ]
        }


async def serve(port: int, grpc_port: int) -> None:
    repository = ModelRepository()
    repository.update(Trivial())
    plane, extension = DataPlane(repository), ModelRepositoryExtension(repository)
    plane.model_registry.get_model("trivial").enable_latency_logging = False
    app = FastAPI(docs_url=None, redoc_url=None)
    register_v1_endpoints(app, plane, extension)
    register_v2_endpoints(app, plane, extension)
    over_grpc = grpc.aio.server()
    grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceServicer(plane, extension), over_grpc)
    over_grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await over_grpc.start()
    await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False)).serve()


def main() -> None:
    logging.getLogger("kserve").setLevel(logging.WARNING)
    config = uvicorn.Config("", log_config=None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
