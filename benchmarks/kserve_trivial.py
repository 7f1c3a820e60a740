"""The peer of the serving benchmark: KServe's endpoints over a model that returns a constant.

Owns: that process. As lean as KServe can be had, so that the comparison is with its best: no request logging, no
access log, no timing middleware, no gRPC listener, the same listener and event loop as our server.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from kserve import Model, ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints


class Trivial(Model):
    """Answers one constant per instance, in the shape of our predictions."""

    def __init__(self) -> None:
        super().__init__("trivial")
        self.ready = True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> dict[str, Any]:
        return {
            "predictions": [
                {"prediction_id": "0", "model_name": self.name, "model_version": 1, "score": 0.5, "decision": "none"}
                for _ in payload["instances"]
            ]
        }


def main() -> None:
    logging.getLogger("kserve").setLevel(logging.WARNING)
    repository = ModelRepository()
    repository.update(Trivial())
    plane, extension = DataPlane(repository), ModelRepositoryExtension(repository)
    plane.model_registry.get_model("trivial").enable_latency_logging = False
    app = FastAPI(docs_url=None, redoc_url=None)
    register_v1_endpoints(app, plane, extension)
    register_v2_endpoints(app, plane, extension)
    config = uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, access_log=False)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
