"""Logistic regression over numbers and one-hot categories, by scikit-learn.

Owns: parameters, the design matrix, the export. Does not own: rows, the report, the output folder
(`training.output`).

The exported graph holds no one-hot rows: the coefficients of a category are a table, of which a code takes one.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from throughline.experiment.parameters import CommonParameters
from throughline.experiment.prepared import Arrays
from throughline.launch.protocol import WorkerFailed
from throughline.models.metrics import log_loss
from throughline.models.onnx_graph import OPSET, Preprocessing, core_inputs, make_model
from training import worker

if TYPE_CHECKING:
    import onnx
    import scipy.sparse
    from sklearn.linear_model import LogisticRegression


class Parameters(CommonParameters):
    C: float = Field(0.1, gt=0, le=1e6, description="The smaller, the more the coefficients are held near zero.")
    max_iter: int = Field(500, ge=1, le=100_000)
    tol: float = Field(1e-4, gt=0, le=1, description="Largest part of the gradient at which the fit ends.")


def train(task: worker.Task, parameters: Parameters) -> None:
    # postpones scikit-learn (1 s), which checking parameters does not need
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    task.start()
    begun, rows = time.monotonic(), task.rows
    design = _Design(rows.facts.preprocessing)
    matrix = design.matrix(rows.train)
    model = LogisticRegression(
        C=parameters.C, max_iter=parameters.max_iter, tol=parameters.tol, random_state=parameters.seed
    )
    with warnings.catch_warnings(), threadpool_limits(task.spec.threads):
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(matrix, rows.train.labels)
        except ConvergenceWarning as warning:
            raise WorkerFailed(
                f"The fit did not converge in {parameters.max_iter} iterations: raise max_iter or lower C.",
                "bad_parameters",
            ) from warning
    fitted = _FittedRegression(model, design)
    iterations, seconds = int(model.n_iter_[0]), time.monotonic() - begun
    task.notes["iterations"] = iterations
    train_loss = log_loss(model.predict_proba(matrix)[:, 1], rows.train.labels)
    held = rows.validation
    validation_loss = log_loss(fitted.probability(held), held.labels) if len(held) else None
    # The whole fit is one epoch: the solver reports nothing in between.
    task.epoch(train_loss, validation_loss, iterations * len(rows.train), seconds)
    task.write(fitted)


class _Design:
    """Which columns the model sees: the numbers, then one per code of each category, 0 (missing or unknown) too."""

    def __init__(self, learned: Preprocessing) -> None:
        self.learned, self.width = learned, learned.width
        self.starts = np.cumsum([self.width, *(len(words) + 1 for words in learned.vocabularies)])

    def matrix(self, rows: Arrays) -> scipy.sparse.csr_matrix:
        """float64 [rows, columns]; sparse, because of each category's columns one is not zero."""
        from scipy import sparse  # postpones scipy

        places = rows.codes + self.starts[:-1]
        columns = np.concatenate([np.broadcast_to(np.arange(self.width), rows.numbers.shape), places], axis=1)
        values = np.concatenate([rows.numbers, np.ones(places.shape)], axis=1, dtype=np.float64)
        ends = np.arange(len(rows) + 1, dtype=np.int32) * values.shape[1]
        parts = (values.reshape(-1), columns.reshape(-1).astype(np.int32), ends)
        return sparse.csr_matrix(parts, shape=(len(rows), self.starts[-1]))


class _FittedRegression:
    """A regression as `training.output` takes it."""

    def __init__(self, model: LogisticRegression, design: _Design) -> None:
        self._model = model
        self._design = design

    def probability(self, rows: Arrays) -> np.ndarray:
        return self._model.predict_proba(self._design.matrix(rows))[:, 1]

    def export(self) -> onnx.ModelProto:
        from onnx import TensorProto, helper, numpy_helper  # postpones onnx

        learned, given = self._design.learned, core_inputs(self._design.learned)
        coefficients, width = np.asarray(self._model.coef_[0], np.float32), learned.width
        nodes, inputs, constants = [], [], []

        def constant(name: str, value: np.ndarray) -> str:
            constants.append(numpy_helper.from_array(value, name))
            return name

        terms = [constant("intercept", np.asarray(self._model.intercept_, np.float32))]
        if width:
            inputs.append(given["numbers"])
            slopes = constant("slopes", coefficients[:width].reshape(-1, 1))
            nodes.append(helper.make_node("MatMul", ["numbers", slopes], ["by_numbers"]))
            terms.append("by_numbers")
        if learned.categorical:
            inputs.append(given["codes"])
            # One table for all categories: a code's row is where its category's part starts, plus the code.
            table = constant("table", coefficients[width:])
            starts = constant("starts", np.asarray(self._design.starts[:-1] - width, np.int64))
            nodes += [
                helper.make_node("Add", ["codes", starts], ["places"]),
                helper.make_node("Gather", [table, "places"], ["of_codes"]),
                helper.make_node("ReduceSum", ["of_codes", constant("columns", np.array([1], np.int64))], ["by_codes"]),
            ]
            terms.append("by_codes")
        nodes += [helper.make_node("Sum", terms, ["logit"]), helper.make_node("Sigmoid", ["logit"], ["probability"])]
        output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 1])
        return make_model("regression", nodes, inputs, [output], constants, {"": OPSET})


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
