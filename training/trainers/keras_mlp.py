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
from throughline.experiment.spec import Epoch, TrainingSpec
from throughline.launch.protocol import WorkerFailed
from throughline.models.onnx_graph import OPSET
from training import worker
from training.parameters import NetworkParameters

if TYPE_CHECKING:
    import keras
    import numpy as np
    import onnx

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
    cuda = _prepare_torch(task.spec) if on_torch else _prepare_tensorflow(task.spec)
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
    with keras.device("cuda" if cuda else "cpu"):
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
        reporter = _reporter(task)
        held = len(rows.validation) > 0
        model.fit(
            _inputs(rows.train, facts),
            rows.train.labels.reshape(-1, 1),
            batch_size=parameters.batch_size,
            epochs=parameters.epochs,
            validation_data=(_inputs(rows.validation, facts), rows.validation.labels.reshape(-1, 1)) if held else None,
            validation_batch_size=8192,
            callbacks=[reporter],
            verbose=0,
        )
    with keras.device("cpu"):
        twin = _network(facts, parameters, "float32")
        twin.set_weights(model.get_weights())
        fitted = _FittedOnTorch(twin, facts) if on_torch else _FittedOnTensorFlow(twin, facts)
        task.write(fitted, reporter.epochs, device="cuda" if cuda else "cpu")


def _prepare_torch(spec: TrainingSpec) -> bool:
    """Set PyTorch up. Returns whether to train on a GPU."""
    import torch

    torch.set_num_threads(spec.threads)
    return spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())


def _check_tensorflow(spec: TrainingSpec) -> None:
    """Raises `WorkerFailed` when TensorFlow is not there, or is to train on a GPU, for which it has no kernels."""
    absent = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if absent:
        message = f"Parameter backend tensorflow: {' and '.join(absent)} not installed: {INSTALL}"
        raise WorkerFailed(message, "bad_parameters")
    if spec.device == "cuda":
        message = "Parameter backend tensorflow: it is installed for the CPU only: train on cpu, or on torch."
        raise WorkerFailed(message, "bad_parameters")


def _prepare_tensorflow(spec: TrainingSpec) -> bool:
    """Set TensorFlow up, before anything of it runs. Returns whether to train on a GPU, as for PyTorch: never."""
    import tensorflow as tf  # ty: ignore[import-not-found]  # an extra

    # Within an operator; how operators are interleaved then has no threads to depend on.
    tf.config.threading.set_intra_op_parallelism_threads(spec.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.set_visible_devices([], "GPU")  # one that another build of TensorFlow may see
    tf.config.experimental.enable_op_determinism()
    return False


def _network(facts: Facts, parameters: Parameters, policy: str) -> keras.Model:
    """`numbers [rows, K]` and `codes [rows, M]`, as far as there are any, `-> logits [rows, 1]`."""
    from keras import Input, Model, initializers, layers

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


def _inputs(rows: Arrays, facts: Facts) -> list[np.ndarray]:
    learned = facts.preprocessing
    return [*([rows.numbers] if learned.width else []), *([rows.codes] if learned.categorical else [])]


def _reporter(task: worker.Task) -> Any:
    """A callback that reports every epoch to the task and keeps them in `epochs`."""
    import keras  # postpones keras

    class Reporter(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.epochs: list[Epoch] = []

        def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            self.begun = time.monotonic()

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            seconds, losses = time.monotonic() - self.begun, logs or {}  # seconds include the validation
            report = Epoch(
                epoch=epoch + 1,
                train_loss=losses["loss"],
                validation_loss=losses.get("val_loss"),
                samples_per_s=round(len(task.rows.train) / max(seconds, 1e-9), 1),
                seconds=round(seconds, 3),
            )
            task.epoch(report)
            self.epochs.append(report)

    return Reporter()


class _FittedOnTorch:
    """A Keras model `(numbers, codes) -> logits` of PyTorch, on the CPU, as `training.output` takes it."""

    def __init__(self, model: keras.Model, facts: Facts) -> None:
        self._model = model
        self._facts = facts

    def probability(self, rows: Arrays) -> np.ndarray:
        import torch

        with torch.no_grad():
            inputs = [torch.tensor(values) for values in _inputs(rows, self._facts)]
            return torch.sigmoid(self._model(inputs, training=False)).squeeze(1).double().numpy()

    def export(self) -> onnx.ModelProto:
        import torch

        from training.export import export_module  # postpones torch, which checking parameters does not need

        class Core(torch.nn.Module):
            def __init__(self, model: keras.Model, numbers: bool, codes: bool) -> None:
                super().__init__()
                self.model, self.wanted = model, (numbers, codes)

            def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
                inputs = [given for given, wanted in zip((numbers, codes), self.wanted, strict=True) if wanted]
                return torch.sigmoid(self.model(inputs, training=False))

        learned = self._facts.preprocessing
        width, words = learned.width, len(learned.categorical)
        return export_module(Core(self._model, width > 0, words > 0).eval(), width, words)


class _FittedOnTensorFlow:
    """A Keras model `(numbers, codes) -> logits` of TensorFlow, on the CPU, as `training.output` takes it."""

    def __init__(self, model: keras.Model, facts: Facts) -> None:
        self._model = model
        self._facts = facts

    def probability(self, rows: Arrays) -> np.ndarray:
        import tensorflow as tf  # ty: ignore[import-not-found]  # an extra

        inputs = [tf.convert_to_tensor(values) for values in _inputs(rows, self._facts)]
        return tf.sigmoid(self._model(inputs, training=False)).numpy().squeeze(1).astype("float64")

    def export(self) -> onnx.ModelProto:
        import tensorflow as tf  # ty: ignore[import-not-found]  # an extra
        import tf2onnx  # ty: ignore[import-not-found]  # an extra

        learned = self._facts.preprocessing
        signature = []
        if learned.width:
            signature.append(tf.TensorSpec((None, learned.width), tf.float32, name="numbers"))
        if learned.categorical:
            signature.append(tf.TensorSpec((None, len(learned.categorical)), tf.int64, name="codes"))

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
