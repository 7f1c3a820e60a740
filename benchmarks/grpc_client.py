"""The same closed load over gRPC: V2 requests, made beforehand, one call after the other per client.

Owns: the requests and the calls. gRPC's Python client costs more than the HTTP client beside it: the figures are those
of both ends on the same cores.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.http_client import Measured, measured
from throughline.foundation.errors import ThroughlineError
from throughline.usecase import UseCase

_FIELDS = {"integer": "int64_contents", "number": "fp64_contents"}
_DATATYPES = {"integer": "INT64", "number": "FP64"}


def requests(usecase: UseCase, model: str, instances: Sequence[dict[str, Any]], rows: int) -> list[Any]:
    """A request per `rows` instances, one tensor per field; what does not fill a request is left out."""
    made = []
    for first in range(0, len(instances) - rows + 1, rows):
        batch, inputs = instances[first : first + rows], []
        for name, field in usecase.request.items():
            kind = _FIELDS.get(field.type, "bytes_contents")
            values = [each[name] for each in batch]
            if kind == "bytes_contents":
                values = [("" if value is None else str(value)).encode() for value in values]
            inputs.append(
                pb.ModelInferRequest.InferInputTensor(
                    name=name,
                    datatype=_DATATYPES.get(field.type, "BYTES"),
                    shape=[rows],
                    contents=pb.InferTensorContents(**{kind: values}),
                )
            )
        made.append(pb.ModelInferRequest(model_name=model, inputs=inputs))
    return made


def drive_grpc(port: int, made: Sequence[Any], clients: int, seconds: float) -> Measured:
    """Keep `clients` calls under way on loopback for `seconds`. Raises `ThroughlineError` at a call that fails."""
    return measured(*asyncio.run(_drive(port, made, clients, seconds)))


async def _drive(port: int, made: Sequence[Any], clients: int, seconds: float) -> tuple[list[float], float]:
    times: list[float] = []
    queue = itertools.cycle(made)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer, start = GRPCInferenceServiceStub(channel).ModelInfer, time.perf_counter()
        await asyncio.gather(*(_call(infer, queue, start + seconds, times) for _ in range(clients)))
        return times, time.perf_counter() - start


async def _call(infer: Any, queue: Iterator[Any], until: float, times: list[float]) -> None:
    while (sent := time.perf_counter()) < until:
        try:
            answer = await infer(next(queue), timeout=30)
        except grpc.aio.AioRpcError as error:
            raise ThroughlineError(f"A call under load failed: {error.code().name} {error.details()}") from None
        if not any(output.name == "score" for output in answer.outputs):
            raise ThroughlineError("A call under load gave no score.")
        times.append(time.perf_counter() - sent)
