"""A multilayer perceptron over numbers and embedded categories, in Keras 3 on PyTorch or TensorFlow, by one worker.

Owns: architecture, parameters, the backend, the fit, the export from TensorFlow. Does not own: the report, the output
folder (`training.output`), the export of a torch module (`training.export`), which a Keras model on PyTorch is.

Keras takes its backend when it is imported, one for the whole process. TensorFlow is an extra (docs/scope.md), and
runs on the CPU only.

The weights are copied into a twin on the CPU in float32, which is validated, compared and exported, also after a
training on a GPU or in bfloat16.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from throughline.experiment.prepared import Arrays, Facts
from throughline.experiment.spec import TrainingSpec
from throughline.launch.protocol import WorkerFailed
from throughline.models.onnx_graph import OPSET
from training import worker
from training.parameters import NetworkParameters

if TYPE_CHECKING:
    import keras
    import numpy as np
    import onnx

    from training.output import Fitted

INSTALL = "uv pip install --python .venv/bin/python -e '.[tensorflow]'"


class Parameters(NetworkParameters):
    batch_size: int = Field(512, ge=1)
    backend: Literal["torch", "tensorflow"] = Field("torch", description="Of Keras; tensorflow is an extra.")


def train(task: worker.Task, parameters: Parameters) -> None:
    on_torch = parameters.backend == "torch"
    if not on_torch:
        _check_tensorflow(task.spec)
    # Before all imports: Keras reads it once, when it is imported, and TensorFlow imports Keras. With TensorFlow in the
    # process and PyTorch in an inherited variable that would be a segmentation fault.
    os.environ["KERAS_BACKEND"] = parameters.backend
    device = _prepare_torch(task.spec) if on_torch else _prepare_tensorflow(task.spec)
    import keras  # postpones keras (4 s), which checking parameters does not need

    if keras.backend.backend() != parameters.backend:
        raise WorkerFailed(
            f"Keras runs on {keras.backend.backend()} in this process already: start a process for each backend.",
            "bad_code",
        )
    keras.utils.set_random_seed(parameters.seed)
    facts, rows = task.rows.facts, task.rows
    policy = "float32" if task.spec.precision == "float32" else f"mixed_{task.spec.precision}"
    task.start()
    with keras.device(device):
        model = _network(facts, parameters, policy)
        steps = math.ceil(len(rows.train) / parameters.batch_size)
        model.compile(
            optimizer=keras.optimizers.AdamW(
                keras.optimizers.schedules.CosineDecay(parameters.learning_rate, parameters.epochs * steps),
                weight_decay=parameters.weight_decay,
            ),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            jit_compile=False,
        )
        held = rows.validation
        model.fit(
            *_data(facts, rows.train),
            batch_size=parameters.batch_size,
            epochs=parameters.epochs,
            validation_data=_data(facts, held) if len(held) else None,
            validation_batch_size=8192,
            callbacks=[_reporter(task)],
            verbose=0,
        )
    with keras.device("cpu"):
        twin = _network(facts, parameters, "float32")
        twin.set_weights(model.get_weights())
        task.write(_fitted_on_torch(twin, facts) if on_torch else _FittedOnTensorFlow(twin, facts), device=device)


def _prepare_torch(spec: TrainingSpec) -> str:
    """Set PyTorch up. Returns the device to train on."""
    import torch  # postpones torch

    torch.set_num_threads(spec.threads)
    return "cuda" if spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available()) else "cpu"


def _check_tensorflow(spec: TrainingSpec) -> None:
    """Raises `WorkerFailed` when TensorFlow is not there, or is to train on a GPU, for which it has no kernels."""
    absent = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if absent:
        message = f"Parameter backend tensorflow: {' and '.join(absent)} not installed: {INSTALL}"
        raise WorkerFailed(message, "bad_parameters")
    if spec.device == "cuda":
        message = "Parameter backend tensorflow: it is installed for the CPU only: train on cpu, or on torch."
        raise WorkerFailed(message, "bad_parameters")


def _prepare_tensorflow(spec: TrainingSpec) -> str:
    """Set TensorFlow up, before anything of it runs. Returns the device to train on."""
    import tensorflow as tf  # ty: ignore[import-not-found]  # an extra

    # Within an operator; how operators are interleaved then has no threads to depend on.
    tf.config.threading.set_intra_op_parallelism_threads(spec.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")  # one that another build of TensorFlow may see
    tf.config.experimental.enable_op_determinism()
    return "cpu"


def _network(facts: Facts, parameters: Parameters, policy: str) -> keras.Model:
    """`numbers [rows, K]` and `codes [rows, M]`, as far as there are any, `-> logits [rows, 1]`."""
    from keras import Input, Model, initializers, layers  # postpones keras

    learned, inputs, parts = facts.preprocessing, [], []
    if learned.width:
        inputs.append(Input((learned.width,), dtype="float32", name="numbers"))
        parts.append(inputs[-1])
    if learned.categorical:
        codes = Input((len(learned.categorical),), dtype="int64", name="codes")
        inputs.append(codes)
        for place, words in enumerate(learned.vocabularies):
            size = len(words) + 1  # code 0: missing or unknown
            width = min(parameters.embedding, (size + 1) // 2)
            parts.append(layers.Embedding(size, width, dtype=policy)(codes[:, place]))
    hidden = layers.Concatenate(dtype=policy)(parts) if len(parts) > 1 else parts[0]
    for width in parameters.hidden:
        hidden = layers.Dense(width, activation=parameters.activation, dtype=policy)(hidden)
        hidden = layers.Dropout(parameters.dropout, dtype=policy)(hidden)
    # Untrained, it predicts the base rate.
    first = initializers.Constant(math.log(facts.base_rate / (1 - facts.base_rate)))
    head = layers.Dense(1, kernel_initializer="zeros", bias_initializer=first, dtype="float32")
    return Model(inputs, head(hidden))


def _inputs(facts: Facts, numbers: Any, codes: Any) -> list[Any]:
    """Of the two those that `_network` has: a list of arrays or tensors."""
    learned = facts.preprocessing
    return [*([numbers] if learned.width else []), *([codes] if learned.categorical else [])]


def _data(facts: Facts, rows: Arrays) -> tuple[list[np.ndarray], np.ndarray]:
    return _inputs(facts, rows.numbers, rows.codes), rows.labels.reshape(-1, 1)


def _reporter(task: worker.Task) -> keras.callbacks.Callback:
    """Reports every epoch to the task; its seconds include the validation."""
    import keras  # postpones keras

    begun = [0.0]

    def begin(epoch: int, losses: dict[str, float]) -> None:
        begun[:] = [time.monotonic()]

    def end(epoch: int, losses: dict[str, float]) -> None:
        seconds = time.monotonic() - begun[0]
        task.epoch(losses["loss"], losses.get("val_loss"), len(task.rows.train), seconds)

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=end)


def _fitted_on_torch(model: keras.Model, facts: Facts) -> Fitted:
    from training.export import FittedModule  # postpones torch, which checking parameters does not need

    return FittedModule(model, facts, lambda *given: model(_inputs(facts, *given), training=False))


class _FittedOnTensorFlow:
    """A Keras model `(numbers, codes) -> logits` of TensorFlow, on the CPU, as `training.output` takes it."""

    def __init__(self, model: keras.Model, facts: Facts) -> None:
        self._model = model
        self._facts = facts

    def probability(self, rows: Arrays) -> np.ndarray:
        import tensorflow as tf  # ty: ignore[import-not-found]  # an extra

        inputs = [tf.convert_to_tensor(values) for values in _inputs(self._facts, rows.numbers, rows.codes)]
        return tf.sigmoid(self._model(inputs, training=False)).numpy().squeeze(1).astype("float64")

    def export(self) -> onnx.ModelProto:
        import tensorflow as tf  # ty: ignore[import-not-found]  # an extra
        import tf2onnx  # ty: ignore[import-not-found]  # an extra

        learned = self._facts.preprocessing
        numbers = tf.TensorSpec((None, learned.width), tf.float32, name="numbers")
        codes = tf.TensorSpec((None, len(learned.categorical)), tf.int64, name="codes")
        signature = _inputs(self._facts, numbers, codes)

        @tf.function(input_signature=signature)
        def core(*inputs: tf.Tensor) -> tf.Tensor:
            return tf.sigmoid(self._model(list(inputs), training=False))

        model, _ = tf2onnx.convert.from_function(core, input_signature=signature, opset=OPSET)
        # tf2onnx names an old version of ai.onnx.ml in any case, and an ensemble's members must agree on it.
        used = [entry for entry in model.opset_import if entry.domain == ""]
        del model.opset_import[:]
        model.opset_import.extend(used)
        return model


if __name__ == "__main__":
    sys.exit(worker.main(Parameters, train))
