"""The weighted mean of the scores of trained models, as one model.

Owns: weights, the graph that holds the members. Does not own: the members, which were trained on the same prepared
rows and are not trained further; the preprocessing, which all of them share and which is in the graph once.

A member's core is cut out of its served model behind `numbers` and `codes`. Members that were prepared otherwise are
refused: their preprocessing would not fit, and their training rows may be this ensemble's validation rows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from throughline.experiment.parameters import CommonParameters
from throughline.experiment.prepared import Arrays
from throughline.experiment.spec import MODEL_FILE, REPORT_FILE, TrainingReport
from throughline.foundation.errors import ThroughlineError
from throughline.launch.protocol import WorkerFailed
from throughline.models.metrics import log_loss
from throughline.models.onnx_graph import SCORE, Preprocessing, compose, core_inputs
from throughline.models.served_model import ServedModel, session_of
from training import worker

if TYPE_CHECKING:
    import onnx

# What `compose` names its own tensors, before the core.
_FRONT, _INPUTS = "front/", ("numbers", "codes")
_NOTHING = 1e-4  # a smaller weight is left out
_LEAST = 1e-7  # scores in a loss keep this distance from 0 and 1


class Parameters(CommonParameters):
    weights: dict[str, Annotated[float, Field(ge=0, le=1e6)]] | None = Field(
        None, description="Per member; brought to a sum of 1. Without them all count alike."
    )
    fit_weights: bool = Field(False, description="Take the weights with the least log loss on the validation rows.")

    @field_validator("weights")
    @classmethod
    def _some_weight(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and not sum(value.values()) > 0:
            raise ValueError("the sum is 0: give at least one member a weight")
        return value

    @field_validator("fit_weights")
    @classmethod
    def _fitted_or_given(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("weights") is not None:
            raise ValueError("weights are given, too: leave one of the two out")
        return value


def train(task: worker.Task, parameters: Parameters) -> None:
    begun, rows, names = time.monotonic(), task.rows, list(task.spec.members)
    _check_names(names, parameters)
    task.start()
    cores = [
        _Core(name, Path(folder), rows.facts.preprocessing, task.spec.threads)
        for name, folder in task.spec.members.items()
    ]
    if parameters.fit_weights:
        if len(rows.validation) == 0:
            problem = "there are no validation rows to fit them on: give weights or take more days"
            raise WorkerFailed(f"Parameter fit_weights: {problem}.", "bad_parameters")
        scores = np.stack([core.score(rows.validation) for core in cores], axis=1)
        weights = best_weights(scores, rows.validation.labels)
    else:
        weights = np.array([1.0 if parameters.weights is None else parameters.weights[name] for name in names])
    weights = np.where(weights < _NOTHING * weights.sum(), 0, weights)
    weights = weights / weights.sum()
    served = np.flatnonzero(weights)
    fitted = _Ensemble([cores[place] for place in served], weights[served])
    held = rows.validation
    train_loss = _log_loss(fitted.probability(rows.train), rows.train.labels)
    validation_loss = _log_loss(fitted.probability(held), held.labels) if len(held) else None
    task.epoch(train_loss, validation_loss, len(rows.train), time.monotonic() - begun)
    task.notes["weights"] = dict(zip(names, weights.tolist(), strict=True))
    task.write(fitted)


def _check_names(members: list[str], parameters: Parameters) -> None:
    if not members:
        raise WorkerFailed("An ensemble without members: name the trained models it is made of.", "bad_parameters")
    if parameters.weights is not None and set(parameters.weights) != set(members):
        named = ", ".join(sorted(parameters.weights)) or "no member"
        problem = f"names {named}, the members are {', '.join(members)}: give each of them a weight"
        raise WorkerFailed(f"Parameter weights {problem}.", "bad_parameters")


def best_weights(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights, none negative, with sum 1, for which the weighted mean of `scores` [rows, members] has the least
    log loss. The loss is convex in them, so that there is one minimum."""
    from scipy.optimize import minimize  # postpones scipy (0.5 s), which given weights do not need

    scores, count = np.asarray(scores, dtype=np.float64), scores.shape[1]
    positive = labels > 0.5

    def slope(weights: np.ndarray) -> np.ndarray:
        mean = np.clip(scores @ weights, _LEAST, 1 - _LEAST)
        return -scores.T @ np.where(positive, 1 / mean, -1 / (1 - mean)) / len(labels)

    found = minimize(
        lambda weights: _log_loss(scores @ weights, labels),
        np.full(count, 1 / count),
        jac=slope,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(count)},
        options={"maxiter": 500, "ftol": 1e-10},
    )
    if not found.success:
        raise WorkerFailed(f"The weights could not be fitted ({found.message}): give them.", "bad_parameters")
    weights = np.clip(found.x, 0, None)
    return weights / weights.sum()


def _log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    return log_loss(np.clip(np.asarray(scores, dtype=np.float64), _LEAST, 1 - _LEAST), labels)


class _Core:
    """A member's own part, behind the preprocessing: `(numbers, codes) -> score [rows]`."""

    def __init__(self, name: str, folder: Path, learned: Preprocessing, threads: int) -> None:
        self.model = core_of(_load_member(name, folder), name, learned)
        self._session = session_of(self.model.SerializeToString(), threads)

    def score(self, rows: Arrays, at_once: int = 65_536) -> np.ndarray:
        """float64 [rows]. In parts, so that what a network has in between fits into memory."""
        parts = [self._run(rows[start : start + at_once]) for start in range(0, len(rows), at_once)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _run(self, rows: Arrays) -> np.ndarray:
        feeds = {"numbers": rows.numbers, "codes": rows.codes.astype(np.int64)}
        wanted = [value.name for value in self.model.graph.input]
        (scores,) = self._session.run([SCORE], {name: np.ascontiguousarray(feeds[name]) for name in wanted})
        return np.asarray(scores, np.float64)


def _load_member(name: str, folder: Path) -> onnx.ModelProto:
    """The member's model file. Raises when it is not the file of its report, or not one that can be served."""
    import onnx  # postpones onnx (0.3 s), which checking parameters does not need

    try:
        report = TrainingReport.model_validate_json((folder / REPORT_FILE).read_text())
        ServedModel.load(folder / MODEL_FILE, report.sha256)
        return onnx.load(str(folder / MODEL_FILE))
    except (OSError, ValidationError, ThroughlineError) as error:
        reason = " ".join(str(error).split())
        raise WorkerFailed(f"Member {name} cannot be used ({reason}): train it first.", "bad_data") from error


def core_of(model: onnx.ModelProto, name: str, learned: Preprocessing) -> onnx.ModelProto:
    """The part of a served model behind its preprocessing, which must be `learned`."""
    from onnx import helper  # postpones onnx

    (front, _), (nodes, constants) = _divided(model)
    produced = {node.output[0] for node in front}
    inputs = [value for wanted, value in core_inputs(learned).items() if wanted in produced]
    graph = helper.make_graph(nodes, "member", inputs, list(model.graph.output), constants)
    core = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    if not inputs or _front_of(model) != _front_of(compose(learned, core)):
        raise WorkerFailed(
            f"Member {name} was trained on rows prepared otherwise (features, means or vocabularies differ): "
            "train it on the dataset and with the seed of this ensemble.",
            "bad_data",
        )
    return core


Part = tuple[list["onnx.NodeProto"], list["onnx.TensorProto"]]


def _divided(model: onnx.ModelProto) -> tuple[Part, Part]:
    """Nodes and constants of a served model: those of the preprocessing, and those of the core."""
    front: Part = ([], [])
    core: Part = ([], [])
    for node in model.graph.node:
        (front if node.output[0].startswith(_FRONT) or node.output[0] in _INPUTS else core)[0].append(node)
    for value in model.graph.initializer:
        (front if value.name.startswith(_FRONT) else core)[1].append(value)
    return front, core


def _front_of(model: onnx.ModelProto) -> tuple[list[bytes], list[tuple[str, str]]]:
    """All before the core, and the metadata about features."""
    nodes, constants = _divided(model)[0]
    content = [each.SerializeToString(deterministic=True) for each in (*nodes, *constants)]
    return content, sorted((entry.key, entry.value) for entry in model.metadata_props)


class _Ensemble:
    """Members and weights as `training.output` takes them."""

    def __init__(self, cores: list[_Core], weights: np.ndarray) -> None:
        self._cores = cores
        self._weights = weights

    def probability(self, rows: Arrays) -> np.ndarray:
        return sum(weight * core.score(rows) for weight, core in zip(self._weights, self._cores, strict=True))

    def export(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper, numpy_helper  # postpones onnx
        from onnx.compose import add_prefix

        nodes, constants, terms = [], [], []
        inputs: dict[str, onnx.ValueInfoProto] = {}
        opsets: dict[str, int] = {}
        for place, (core, weight) in enumerate(zip(self._cores, self._weights, strict=True)):
            part = add_prefix(core.model, f"member_{place}/", rename_inputs=False)
            inputs |= {value.name: value for value in part.graph.input}
            for entry in part.opset_import:
                known = opsets.setdefault(entry.domain, entry.version)
                if known != entry.version:
                    problem = f"Members have ONNX operators of versions {known} and {entry.version}: train them anew."
                    raise WorkerFailed(problem, "bad_data")
            factor = numpy_helper.from_array(np.array(weight, np.float32), f"weight_{place}")
            constants += [*part.graph.initializer, factor]
            terms.append(f"share_{place}")
            score = part.graph.output[0].name
            nodes += [*part.graph.node, helper.make_node("Mul", [score, factor.name], [terms[-1]])]
        nodes.append(helper.make_node("Sum", terms, ["mean"]))
        output = helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["rows"])
        ordered = [inputs[name] for name in _INPUTS if name in inputs]
        graph = helper.make_graph(nodes, "ensemble", ordered, [output], constants)
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        versions = [core.model.ir_version for core in self._cores]
        return helper.make_model(graph, opset_imports=imports, ir_version=max(versions))


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
