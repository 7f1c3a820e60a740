"""The wire formats of a use case: V1 objects or V2 tensors as input, the same prediction as output.

Owns: names, datatypes and shapes on the wire. Does not own: what a field may hold (`throughline.usecase.requests`).
In a tensor, "" stands for a null text or timestamp and NaN for a null number; an integer tensor cannot hold a null.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput

from throughline.usecase import UseCase
from throughline.usecase.requests import MAX_INSTANCES, BadRequest

_DATATYPES = {"string": "BYTES", "timestamp": "BYTES", "integer": "INT64", "number": "FP64"}


@dataclass(frozen=True)
class Prediction:
    """The result for one instance, the same in every protocol.

    flags: what the score rests on, where that is less than usual: `unknown_entity:ENTITY`, `default:VIEW` (nothing is
    stored for these keys, the model's defaults are used), `expired:VIEW`, `outside_domain:FEATURE or FIELD`.
    """

    prediction_id: str
    model_name: str
    model_version: int
    revision: str
    score: float
    decision: str
    flags: list[str]

    def fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OUTPUTS}


_OUTPUTS = {
    "prediction_id": "BYTES",
    "model_name": "BYTES",
    "model_version": "INT64",
    "revision": "BYTES",
    "score": "FP64",
    "decision": "BYTES",
    "flags": "BYTES",  # a JSON array as text
}


def input_tensors(usecase: UseCase) -> list[dict[str, Any]]:
    """V2 metadata: one tensor per request field."""
    return [
        {"name": name, "datatype": _DATATYPES[field.type], "shape": [-1]} for name, field in usecase.request.items()
    ]


def output_tensors() -> list[dict[str, Any]]:
    """V2 metadata of the output."""
    return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in _OUTPUTS.items()]


def instances_of_v1(body: Any) -> list[Any]:
    """`{"instances": [...]}` -> the instances, unchecked."""
    if not isinstance(body, dict):
        raise BadRequest("body", 'must be a JSON object {"instances": [...]}')
    if "instances" not in body:
        raise BadRequest("instances", "is missing")
    if unknown := [key for key in body if key != "instances"]:
        raise BadRequest(ascii(unknown[0])[1:61], 'is not known: send {"instances": [...]}')
    if not isinstance(body["instances"], list):
        raise BadRequest("instances", "must be an array of objects")
    return body["instances"]


def instances_of_v2(usecase: UseCase, request: InferRequest) -> list[dict[str, Any]]:
    """One input tensor per request field, shape [N] or [N, 1] -> N instances, their values unchecked."""
    tensors: dict[str, InferInput] = {}
    for tensor in request.inputs:
        if not isinstance(tensor.name, str) or tensor.name not in usecase.request:
            known = ", ".join(usecase.request)
            raise BadRequest(f"inputs.{ascii(tensor.name)[1:61]}", f"is not a field: known are {known}")
        if tensor.name in tensors:
            raise BadRequest(f"inputs.{tensor.name}", "is there twice")
        tensors[tensor.name] = tensor
    columns: dict[str, list[Any]] = {}
    rows: int | None = None
    for name, field in usecase.request.items():
        if name not in tensors:
            raise BadRequest(f"inputs.{name}", "is missing")
        tensor, datatype = tensors[name], _DATATYPES[field.type]
        if tensor.datatype != datatype:
            raise BadRequest(f"inputs.{name}", f"has datatype {ascii(tensor.datatype)[1:21]}: send {datatype}")
        count = _rows(name, tensor.shape)
        if rows is not None and count != rows:
            raise BadRequest(f"inputs.{name}", f"has {count} rows where {next(iter(columns))} has {rows}")
        rows = count
        columns[name] = _values(name, tensor, count)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def response_v1(predictions: Sequence[Prediction]) -> dict[str, Any]:
    return {"predictions": [prediction.fields() for prediction in predictions]}


def check_outputs(request: InferRequest) -> None:
    """Raises `BadRequest` for a requested output that there is not, and for parameters that are no object."""
    for where, parameters in [("parameters", request.parameters)] + [
        ("outputs.parameters", wanted.parameters) for wanted in request.request_outputs or []
    ]:
        if parameters is not None and not isinstance(parameters, Mapping):
            raise BadRequest(where, "must be an object")
    for wanted in request.request_outputs or []:
        if not isinstance(wanted.name, str) or wanted.name not in _OUTPUTS:
            known = ", ".join(_OUTPUTS)
            raise BadRequest(f"outputs.{ascii(wanted.name)[1:61]}", f"is not an output: known are {known}")


def response_v2(request: InferRequest, predictions: Sequence[Prediction]) -> InferResponse:
    """The requested outputs, or all, as tensors of shape [N]; binary where the request demands it."""
    requested = {wanted.name: wanted.binary_data for wanted in request.request_outputs or []}
    binary = {
        name: bool(request.use_binary_outputs if requested.get(name) is None else requested[name])
        for name in requested or _OUTPUTS
    }
    return InferResponse(
        response_id=request.id or str(uuid.uuid4()),
        model_name=request.model_name,
        model_version=str(predictions[0].model_version),
        infer_outputs=[
            InferOutput(name, [len(predictions)], _OUTPUTS[name], _data(name, predictions)) for name in binary
        ],
        use_binary_outputs=bool(request.use_binary_outputs),
        requested_outputs=[RequestedOutput(name, {"binary_data": is_binary}) for name, is_binary in binary.items()],
    )


def _data(name: str, predictions: Sequence[Prediction]) -> list[Any]:
    values = [getattr(prediction, name) for prediction in predictions]
    return [json.dumps(value, ensure_ascii=False) for value in values] if name == "flags" else values


def _rows(name: str, shape: Any) -> int:
    if isinstance(shape, str) or not isinstance(shape, Sequence) or not all(type(size) is int for size in shape):
        raise BadRequest(f"inputs.{name}", "has a shape that is no list of integers: send [N] or [N, 1]")
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise BadRequest(f"inputs.{name}", f"has shape {list(shape)[:4]}: send [N] or [N, 1]")
    if not 1 <= shape[0] <= MAX_INSTANCES:
        raise BadRequest(f"inputs.{name}", f"has {shape[0]} rows: send 1 to {MAX_INSTANCES}")
    return shape[0]


def _values(name: str, tensor: InferInput, count: int) -> list[Any]:
    if tensor._raw_data is not None:
        try:
            values = tensor.as_numpy().reshape(-1).tolist()
        # struct.error, ValueError and more: the lengths and bytes are the caller's.
        except Exception:
            raise BadRequest(f"inputs.{name}", f"its bytes are not {count} values of {tensor.datatype}") from None
    else:
        if isinstance(tensor.data, str | bytes | Mapping | bool | int | float):
            raise BadRequest(f"inputs.{name}", "must have its values in a list")
        # ty: ignore[invalid-argument-type]  # without raw bytes it is the list that was sent
        values = list(tensor.data) if tensor.data is not None else []
        if len(tensor.shape) == 2 and values and all(isinstance(row, list) and len(row) == 1 for row in values):
            values = [row[0] for row in values]
    if len(values) != count:
        raise BadRequest(f"inputs.{name}", f"holds {len(values)} values where its shape says {count}")
    return [_value(name, value) for value in values]


def _value(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadRequest(f"inputs.{name}", "is not UTF-8") from None
    return None if isinstance(value, float) and math.isnan(value) else value
