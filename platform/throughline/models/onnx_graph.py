"""From raw features to a model's core: the ONNX graph that stands in front of any framework's model.

Owns: missing values, standardisation, vocabularies, the metadata a served model carries. The same arithmetic is there
twice, as NumPy for training and as ONNX for serving, and a trainer compares the two on real rows.
Does not own: the core, which a trainer exports as a graph with these inputs and output:

    numbers  float32 [rows, K + number of indicators]   standardised, no NaN
    codes    int64   [rows, M]                          0 = missing or unknown, otherwise 1 + place in the vocabulary
    ->       float   [rows] or [rows, 1]                probability of the positive class

A core that has no use for one of the two inputs leaves it out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from throughline.foundation.errors import ThroughlineError

if TYPE_CHECKING:
    import onnx

NUMERIC, CATEGORICAL, SCORE = "numeric", "categorical", "score"
ML_DOMAIN = "ai.onnx.ml"
# onnxruntime 1.31 reads ONNX IR 8 and ai.onnx.ml 3 since years: older servers can load what is registered today.
IR_VERSION = 8
OPSET, ML_OPSET = 17, 3


class Preprocessing(BaseModel):
    """What was learned from the training rows about each feature, in column order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    numeric: list[str]
    mean: list[float]
    scale: list[float]
    indicators: list[str]  # numerics that were missing somewhere in training: each gets a 0/1 column of its own
    categorical: list[str]
    vocabularies: list[list[str]]
    domain: dict[str, Any]
    clip: float = 8.0  # in standard deviations: one absurd reading (a wind of 1000 mph) must not carry a score away

    @property
    def width(self) -> int:
        """Columns of `numbers`."""
        return len(self.numeric) + len(self.indicators)

    @property
    def encoders(self) -> list[tuple[list[str], list[int]]]:
        """Per categorical column the known words and their codes.

        An empty vocabulary is no valid mapping: it maps "", which is missing and so 0 in any case.
        """
        return [(words or [""], list(range(1, len(words) + 1)) or [0]) for words in self.vocabularies]

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """float32 [rows, K] with NaN for missing -> float32 [rows, width]; the ONNX graph does the same steps."""
        missing = np.isnan(values)
        mean, scale = np.asarray(self.mean, np.float32), np.asarray(self.scale, np.float32)
        filled = np.where(missing, mean, values)
        standardised = np.clip((filled - mean) / scale, np.float32(-self.clip), np.float32(self.clip))
        places = [self.numeric.index(name) for name in self.indicators]
        return np.concatenate([standardised, missing[:, places].astype(np.float32)], axis=1, dtype=np.float32)

    def codes(self, frame: pl.DataFrame) -> np.ndarray:
        """The categorical columns as int64 [rows, M]."""
        columns = [
            frame[name].cast(pl.String).replace_strict(words, codes, default=0, return_dtype=pl.Int64).to_numpy()
            for name, (words, codes) in zip(self.categorical, self.encoders, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((frame.height, 0), np.int64)


def numeric_matrix(frame: pl.DataFrame, names: list[str]) -> np.ndarray:
    """Columns as float32 [rows, K]; null becomes NaN. Through float64, which plain values of a request have."""
    floats = frame.select(pl.col(name).cast(pl.Float64).cast(pl.Float32).fill_null(math.nan) for name in names)
    return floats.to_numpy() if names else np.zeros((frame.height, 0), np.float32)


def _float(value: Any) -> float:
    """Of a statistic of a numeric column, which Polars types as any of its values."""
    return float(value)


def learn_preprocessing(rows: pl.DataFrame, numeric: list[str], categorical: list[str]) -> Preprocessing:
    """Learn from training rows. Does not depend on their order."""
    mean, scale, indicators, domain = [], [], [], {}
    for name in numeric:
        # Sorted, so that the rounding of the sum is that of the values, not of the order they came in.
        seen = rows[name].cast(pl.Float32).cast(pl.Float64).fill_nan(None).drop_nulls().sort()
        finite = seen.filter(seen.is_finite())
        mean.append(_float(finite.mean()) if len(finite) else 0.0)
        deviation = _float(finite.std(ddof=0)) if len(finite) else 0.0
        scale.append(deviation if deviation > 1e-12 else 1.0)
        if len(seen) < rows.height:
            indicators.append(name)
        domain[name] = [_float(finite.min()), _float(finite.max())] if len(finite) else None
    vocabularies = []
    for name in categorical:
        words = rows[name].cast(pl.String).drop_nulls().unique().sort().to_list()
        vocabularies.append([word for word in words if word != ""])
        domain[name] = vocabularies[-1]
    return Preprocessing(
        numeric=numeric,
        mean=mean,
        scale=scale,
        indicators=indicators,
        categorical=categorical,
        vocabularies=vocabularies,
        domain=domain,
    )


def compose(preprocessing: Preprocessing, core: onnx.ModelProto) -> onnx.ModelProto:
    """Put the preprocessing in front of `core`: a model in the served format, checked, without names of machines."""
    import onnx  # postpones onnx (0.3 s), which loading a model does not need
    from onnx import compose as onnx_compose

    core = _plain(core)
    inputs = {value.name for value in core.graph.input}
    if not inputs or not inputs <= {"numbers", "codes"} or len(core.graph.output) != 1:
        raise ThroughlineError(
            f"The exported model has inputs {sorted(inputs)} and {len(core.graph.output)} output(s): "
            "export it with inputs named numbers and codes and one output, the probability."
        )
    opset = next((entry.version for entry in core.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    front = _front(preprocessing, inputs, opset)
    ml_opsets = [entry for entry in core.opset_import if entry.domain == ML_DOMAIN]
    if ml_opsets:
        next(entry for entry in front.opset_import if entry.domain == ML_DOMAIN).version = ml_opsets[0].version
    front.ir_version = core.ir_version = max(core.ir_version, IR_VERSION)
    core = onnx_compose.add_prefix(core, "core/", rename_inputs=False)
    model = onnx_compose.merge_models(front, core, io_map=[(name, name) for name in sorted(inputs)])
    made = onnx.helper.make_node
    flat = [
        made("Constant", [], ["score/shape"], value_ints=[-1]),
        made("Reshape", [model.graph.output[0].name, "score/shape"], ["score/flat"]),
        made("Cast", ["score/flat"], [SCORE], to=onnx.TensorProto.FLOAT),
    ]
    model.graph.node.extend(flat)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(SCORE, onnx.TensorProto.FLOAT, ["rows"]))
    model.graph.name = "throughline"
    model.producer_name, model.producer_version = "throughline", ""
    onnx.helper.set_model_props(
        model,
        {
            "throughline.numeric": json.dumps(preprocessing.numeric),
            "throughline.categorical": json.dumps(preprocessing.categorical),
            "throughline.domain": json.dumps(preprocessing.domain, sort_keys=True),
        },
    )
    onnx.checker.check_model(model)
    return model


def _plain(core: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without what an exporter leaves of its machine (source paths, stack traces) and without stale shapes."""
    import onnx  # postpones onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(core)
    copy.doc_string = copy.graph.doc_string = ""
    del copy.metadata_props[:]
    del copy.graph.metadata_props[:]
    del copy.graph.value_info[:]
    for element in (*copy.graph.node, *copy.graph.input, *copy.graph.output, *copy.graph.initializer):
        element.doc_string = ""
        if hasattr(element, "metadata_props"):
            del element.metadata_props[:]
    return copy


def _front(preprocessing: Preprocessing, wanted: set[str], opset: int) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper  # postpones onnx

    nodes, initial, inputs = [], [], []

    def constant(name: str, value: Any, kind: type) -> str:
        initial.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    if "numbers" in wanted:
        inputs.append(helper.make_tensor_value_info(NUMERIC, TensorProto.FLOAT, ["rows", len(preprocessing.numeric)]))
        mean = constant("front/mean", preprocessing.mean, np.float32)
        scale = constant("front/scale", preprocessing.scale, np.float32)
        low = constant("front/low", -preprocessing.clip, np.float32)
        high = constant("front/high", preprocessing.clip, np.float32)
        nodes += [
            helper.make_node("IsNaN", [NUMERIC], ["front/missing"]),
            helper.make_node("Where", ["front/missing", mean, NUMERIC], ["front/filled"]),
            helper.make_node("Sub", ["front/filled", mean], ["front/centred"]),
            helper.make_node("Div", ["front/centred", scale], ["front/scaled"]),
            helper.make_node("Clip", ["front/scaled", low, high], ["front/clipped"]),
        ]
        if preprocessing.indicators:
            indices = [preprocessing.numeric.index(name) for name in preprocessing.indicators]
            places = constant("front/indicators", indices, np.int64)
            nodes += [
                helper.make_node("Gather", ["front/missing", places], ["front/gaps"], axis=1),
                helper.make_node("Cast", ["front/gaps"], ["front/flags"], to=TensorProto.FLOAT),
                helper.make_node("Concat", ["front/clipped", "front/flags"], ["numbers"], axis=1),
            ]
        else:
            nodes.append(helper.make_node("Identity", ["front/clipped"], ["numbers"]))
    if "codes" in wanted:
        width = len(preprocessing.categorical)
        inputs.append(helper.make_tensor_value_info(CATEGORICAL, TensorProto.STRING, ["rows", width]))
        encoded = [f"front/codes_{place}" for place in range(width)]
        for place, (words, codes) in enumerate(preprocessing.encoders):
            at, column = constant(f"front/column_{place}", [place], np.int64), f"front/words_{place}"
            mapping: dict[str, Any] = {"keys_strings": words, "values_int64s": codes, "default_int64": 0}
            nodes += [
                helper.make_node("Gather", [CATEGORICAL, at], [column], axis=1),
                helper.make_node("LabelEncoder", [column], [encoded[place]], domain=ML_DOMAIN, **mapping),
            ]
        nodes.append(helper.make_node("Concat", encoded, ["codes"], axis=1))
    outputs = [value for name, value in core_inputs(preprocessing).items() if name in wanted]
    return make_model("front", nodes, inputs, outputs, initial, {"": opset, ML_DOMAIN: ML_OPSET})


def core_inputs(preprocessing: Preprocessing) -> dict[str, onnx.ValueInfoProto]:
    """What the preprocessing gives: the inputs of a core, by name."""
    from onnx import TensorProto, helper  # postpones onnx

    kinds = {
        "numbers": (TensorProto.FLOAT, preprocessing.width),
        "codes": (TensorProto.INT64, len(preprocessing.categorical)),
    }
    return {name: helper.make_tensor_value_info(name, kind, ["rows", width]) for name, (kind, width) in kinds.items()}


def make_model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto],
    opsets: Mapping[str, int],
) -> onnx.ModelProto:
    """A graph as a model; `opsets`: version by domain of the operators used."""
    from onnx import helper  # postpones onnx

    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
