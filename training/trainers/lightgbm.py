"""Gradient boosted trees over numbers and categories, by LightGBM.

Owns: parameters, boosting, thresholds that ONNX can hold, the export. Does not own: rows, the report, the output
folder (`training.output`).

An epoch is `EPOCH_ROUNDS` rounds of boosting, one tree each. Categories are LightGBM's own categorical features: a
split tests whether a code is in a set, which ONNX carries as a chain of equalities. LightGBM's thresholds are float64,
those of ONNX float32, and a value between the two would go another way; each threshold is therefore rounded down to
a float32, which sends every float32 value where it went before. The rounded booster is the model: what is validated,
compared and exported.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import AliasChoices, Field

from throughline.experiment.parameters import CommonParameters
from throughline.experiment.prepared import Arrays, Facts
from throughline.launch.protocol import WorkerFailed
from throughline.models.onnx_graph import ML_DOMAIN, ML_OPSET, OPSET, core_inputs, make_model
from training import worker

if TYPE_CHECKING:
    import lightgbm
    import onnx

EPOCH_ROUNDS = 10


class Parameters(CommonParameters):
    n_estimators: int = Field(
        200, ge=1, le=10_000, validation_alias=AliasChoices("n_estimators", "num_boost_round", "num_iterations"),
        description="Rounds of boosting, one tree each.",
    )  # fmt: skip
    learning_rate: float = Field(0.05, gt=0, le=1, validation_alias=AliasChoices("learning_rate", "lr"))
    num_leaves: int = Field(31, ge=2, le=4096)
    max_depth: int = Field(-1, ge=-1, le=64, description="-1: no limit.")
    min_child_samples: int = Field(
        500, ge=1, validation_alias=AliasChoices("min_child_samples", "min_data_in_leaf"), description="Per leaf."
    )
    feature_fraction: float = Field(0.5, gt=0, le=1, description="Of the features, drawn for each tree.")
    bagging_fraction: float = Field(0.7, gt=0, le=1, description="Of the rows, drawn for each tree.")
    lambda_l1: float = Field(0.0, ge=0)
    lambda_l2: float = Field(20.0, ge=0)
    min_gain_to_split: float = Field(0.0, ge=0)
    max_bin: int = Field(255, ge=2, le=65_535)
    cat_smooth: float = Field(10.0, ge=0, description="Against the noise of rare categories.")
    cat_l2: float = Field(10.0, ge=0)
    max_cat_threshold: int = Field(32, ge=1, le=1024, description="Most categories on one side of a split.")


def train(task: worker.Task, parameters: Parameters) -> None:
    with _without_wrappers():
        import lightgbm  # postpones lightgbm (0.3 s), which checking parameters does not need

    rows, learned = task.rows, task.rows.facts.preprocessing
    categories = list(range(learned.width, learned.width + len(learned.categorical)))
    options = _options(task, parameters)
    data = lightgbm.Dataset(
        _matrix(rows.train), rows.train.labels, categorical_feature=categories, params=options, free_raw_data=True
    )
    booster = lightgbm.Booster(options, data)
    held = len(rows.validation) > 0
    if held:
        judged = lightgbm.Dataset(_matrix(rows.validation), rows.validation.labels, reference=data, params=options)
        booster.add_valid(judged, "validation")
    task.start()
    finished = False
    while booster.current_iteration() < parameters.n_estimators and not finished:
        begun, first = time.monotonic(), booster.current_iteration()
        last = min(first + EPOCH_ROUNDS, parameters.n_estimators)
        while booster.current_iteration() < last and not finished:
            finished = booster.update()  # true when no split is left that the parameters allow
        rounds, seconds = booster.current_iteration() - first, time.monotonic() - begun
        if rounds:
            validation_loss = booster.eval_valid()[0][2] if held else None
            task.epoch(booster.eval_train()[0][2], validation_loss, rounds * len(rows.train), seconds)
    task.notes["trees"] = booster.num_trees()
    task.write(_FittedTrees(rounded(booster), rows.facts))


def _options(task: worker.Task, parameters: Parameters) -> dict[str, Any]:
    own = parameters.model_dump(exclude={"n_estimators", "min_child_samples"})
    return {
        **own,
        "min_data_in_leaf": parameters.min_child_samples,
        "bagging_freq": 1 if parameters.bagging_fraction < 1 else 0,
        "objective": "binary",
        "metric": "binary_logloss",
        "deterministic": True,
        "force_row_wise": True,  # which of the two ways is faster, LightGBM would try out anew each time
        "num_threads": task.spec.threads,
        "verbose": -1,
    }


def _matrix(rows: Arrays) -> np.ndarray:
    """Numbers and codes side by side, float32: exact for codes below 2^24."""
    if np.isnan(rows.numbers).any():
        raise WorkerFailed("Prepared rows hold NaN: start the training again, they are prepared anew.", "bad_data")
    return np.concatenate([rows.numbers, rows.codes], axis=1, dtype=np.float32)


def at_most(values: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each float64 value.

    For every float32 `x` it holds that `x <= value` exactly when `x <= at_most(value)`.
    """
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
        below = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest.astype(np.float64) > values, below, nearest)


def rounded(booster: lightgbm.Booster) -> lightgbm.Booster:
    """The booster with each threshold rounded down to a float32."""
    import lightgbm  # postpones lightgbm

    def line(found: re.Match[str]) -> str:
        # Of a split on a category this is the number of a set, a small integer, which stays as it is.
        thresholds = at_most(np.array(found["values"].split(), dtype=np.float64))
        return "threshold=" + " ".join(repr(float(value)) for value in thresholds)

    text = re.sub(r"^threshold=(?P<values>.+)$", line, booster.model_to_string(), flags=re.MULTILINE)
    # Sizes in bytes of the trees' texts, which have changed; without them LightGBM reads tree after tree.
    text = re.sub(r"^tree_sizes=.*\n", "", text, flags=re.MULTILINE)
    return lightgbm.Booster(model_str=text)


class _FittedTrees:
    """A booster as `training.output` takes it."""

    def __init__(self, booster: lightgbm.Booster, facts: Facts) -> None:
        self._booster = booster
        self._learned = facts.preprocessing

    def probability(self, rows: Arrays) -> np.ndarray:
        return np.asarray(self._booster.predict(_matrix(rows)))

    def export(self) -> onnx.ModelProto:
        import onnx  # postpones onnx
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        learned, given = self._learned, core_inputs(self._learned)
        width, words = learned.width, len(learned.categorical)
        with _deep_recursion():
            kinds = [("features", FloatTensorType([None, width + words]))]
            trees = convert_lightgbm(self._booster, name="trees", initial_types=kinds, zipmap=False)
        inputs, nodes, columns = [], [], []
        if width:
            inputs.append(given["numbers"])
            columns.append("numbers")
        if words:
            inputs.append(given["codes"])
            nodes.append(onnx.helper.make_node("Cast", ["codes"], ["code_numbers"], to=onnx.TensorProto.FLOAT))
            columns.append("code_numbers")
        nodes.append(onnx.helper.make_node("Concat", columns, ["features"], axis=1))
        # Of the ensemble's outputs, label and [1 - p, p], only p is wanted.
        (ensemble,) = (node for node in trees.graph.node if node.op_type == "TreeEnsembleClassifier")
        nodes += [
            ensemble,
            onnx.helper.make_node("Constant", [], ["positive"], value_int=1),
            onnx.helper.make_node("Gather", [ensemble.output[1], "positive"], ["probability"], axis=1),
        ]
        output = onnx.helper.make_tensor_value_info("probability", onnx.TensorProto.FLOAT, ["rows"])
        return make_model("trees", nodes, inputs, [output], [], {"": OPSET, ML_DOMAIN: ML_OPSET})


@contextmanager
def _without_wrappers() -> Generator[None]:
    """LightGBM imports scikit-learn and pandas where they are installed: 1 s of a core for wrappers not used here."""
    absent = {"sklearn", "pandas"} - sys.modules.keys()
    for name in absent:
        sys.modules[name] = None  # ty: ignore[invalid-assignment]  # importing it is then an ImportError
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def _deep_recursion() -> Generator[None]:
    """The converter goes down a tree by recursion, and a set of categories is as deep as it has members."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 1_000_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
