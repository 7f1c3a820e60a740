"""ONNX models that go wrong, each in its own way, made from the good one of `fake_store_server`.

Those of `AT_LOAD` cannot be loaded or tried; those of `LIVE` pass trials on the declared example and on a row without
values, and go wrong on real requests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.fake_store_server import model_bytes

Nodes = list[onnx.NodeProto]
AT_LOAD = ("garbage", "too large", "hangs")
LIVE = ("errors", "slow", "shifted", "NaN")


def bad_model(kind: str) -> bytes:
    """The file of a model of one of `AT_LOAD` or `LIVE`."""
    if kind == "garbage":
        return b"\x08\x08not a model" * 100
    if kind == "shifted":
        return model_bytes(bias=3.0)
    return _with_tail(_TAILS[kind])


def _with_tail(tail: Callable[[str, str], tuple[Nodes, list[onnx.TensorProto]]]) -> bytes:
    """The good model with nodes between its probability and its output. `tail`: of the names of both."""
    model = onnx.load_model_from_string(model_bytes())
    (last,) = [node for node in model.graph.node if "score" in node.output]
    last.output[0] = "probability"
    nodes, constants = tail("probability", "score")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    return model.SerializeToString()


def _constant(name: str, values: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def _afternoon() -> tuple[Nodes, list[onnx.TensorProto]]:
    """`late`: 1 for rows whose departure hour is after noon, else 0; one per row. The declared example is at 9."""
    nodes = [
        helper.make_node("Gather", ["numeric", "column"], ["hour"], axis=1),
        helper.make_node("Greater", ["hour", "noon"], ["after"]),
        helper.make_node("Cast", ["after"], ["late"], to=TensorProto.FLOAT),
    ]
    return nodes, [_constant("column", 0, np.int64), _constant("noon", 12.0)]


def _errors(before: str, after: str) -> tuple[Nodes, list[onnx.TensorProto]]:
    """An index out of bounds in the afternoon."""
    nodes, constants = _afternoon()
    nodes += [
        helper.make_node("Mul", ["late", "far"], ["place"]),
        helper.make_node("Cast", ["place"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["one", "index"], ["factor"], axis=0),
        helper.make_node("Mul", [before, "factor"], [after]),
    ]
    return nodes, [*constants, _constant("far", 7.0), _constant("one", [1.0])]


def _nan(before: str, after: str) -> tuple[Nodes, list[onnx.TensorProto]]:
    """0 / 0 in the afternoon."""
    nodes, constants = _afternoon()
    nodes += [
        helper.make_node("Sub", ["unit", "late"], ["rest"]),
        helper.make_node("Div", ["rest", "rest"], ["factor"]),
        helper.make_node("Mul", [before, "factor"], [after]),
    ]
    return nodes, [*constants, _constant("unit", 1.0)]


def _slow(before: str, after: str) -> tuple[Nodes, list[onnx.TensorProto]]:
    """Products of matrices that depend on the row, so that they cannot be computed at load."""
    nodes = [
        helper.make_node("ReduceMean", [before], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nought"], ["zero"]),
        helper.make_node("Expand", ["zero", "square"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{n}", f"m{n}"], [f"m{n + 1}"]) for n in range(6)),
        helper.make_node("ReduceMin", ["m6"], ["nothing"], keepdims=0),
        helper.make_node("Add", [before, "nothing"], [after]),
    ]
    return nodes, [_constant("square", [1000, 1000], np.int64), _constant("nought", 0.0)]


def _too_large(before: str, after: str) -> tuple[Nodes, list[onnx.TensorProto]]:
    """A matrix of 64 GB."""
    nodes = [
        helper.make_node("ReduceMean", [before], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "square"], ["m"]),
        helper.make_node("ReduceMin", ["m"], ["least"], keepdims=0),
        helper.make_node("Min", [before, "least"], [after]),
    ]
    return nodes, [_constant("square", [130_000, 130_000], np.int64)]


def _hangs(before: str, after: str) -> tuple[Nodes, list[onnx.TensorProto]]:
    """A loop of a billion steps."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["go_on"]),
            helper.make_node("Identity", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [None]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [None]),
        ],
    )
    loop = helper.make_node("Loop", ["steps", "always", before], [after], body=body)
    return [loop], [_constant("steps", 10**9, np.int64), _constant("always", True, np.bool_)]


_TAILS = {"errors": _errors, "slow": _slow, "NaN": _nan, "too large": _too_large, "hangs": _hangs}
