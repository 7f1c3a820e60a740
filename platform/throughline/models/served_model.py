"""A model as it is served: one ONNX file, named inputs, a digest checked on the very bytes that are run.

Owns: loading, scoring a frame of features, finding values outside the training domain.
Does not own: where the file comes from (`registry/versions.py`), how it was put together (`onnx_graph.py`).
Only standard ONNX operators are executed: no custom operator library is loaded, and a model with other operators or
with data in further files is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.models.onnx_graph import CATEGORICAL, ML_DOMAIN, NUMERIC, SCORE, numeric_matrix

if TYPE_CHECKING:
    import onnxruntime

_DOMAINS = {"", "ai.onnx", ML_DOMAIN}
_OUTPUTS = [SCORE]


class ServedModel:
    """A loaded model; made by `load`. Safe to use from several threads."""

    def __init__(
        self,
        session: Any,
        numeric: list[str],
        categorical: list[str],
        domain: dict[str, Any],
        sha256: str,
        size_bytes: int,
    ) -> None:
        self._session = session
        self._inputs = {value.name for value in session.get_inputs()}
        self.numeric = numeric
        self.categorical = categorical
        self.domain = domain
        self.sha256 = sha256
        self.size_bytes = size_bytes
        # A feature never seen in training has no interval: everything is outside of it.
        bounds = [domain.get(name) or [np.inf, -np.inf] for name in numeric]
        self._low = np.asarray([low for low, _ in bounds], np.float64).astype(np.float32)
        self._high = np.asarray([high for _, high in bounds], np.float64).astype(np.float32)
        self._known = [{*(domain.get(name) or []), ""} for name in categorical]

    @classmethod
    def load(cls, path: Path, sha256: str, threads: int = 1) -> ServedModel:
        """Read once, check the digest, make the session from those same bytes. Raises `ThroughlineError`."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ThroughlineError(f"Model file {path} cannot be read ({error.strerror}): deploy it again.") from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != sha256:
            raise ThroughlineError(
                f"Model file {path} has digest {digest[:12]}, registered is {sha256[:12]}: "
                "it was changed or damaged after registration; deploy the version again."
            )
        _refuse_foreign(content, path)
        try:
            session = session_of(content, threads)
        except Exception as error:  # onnxruntime's many error types share no base but Exception
            raise ThroughlineError(
                f"{path} is not a model onnxruntime can run ({str(error).splitlines()[0]}): train it again."
            ) from error
        kinds = {value.name: value.type for value in session.get_inputs()}
        expected = {NUMERIC: "tensor(float)", CATEGORICAL: "tensor(string)"}
        names = [value.name for value in session.get_outputs()]
        properties = session.get_modelmeta().custom_metadata_map
        try:
            lists = [json.loads(properties[f"throughline.{key}"]) for key in ("numeric", "categorical", "domain")]
        except (KeyError, ValueError) as error:
            raise ThroughlineError(
                f"{path} does not name its features (metadata throughline.*): build it with onnx_graph.compose."
            ) from error
        if not kinds or any(expected.get(name) != kind for name, kind in kinds.items()) or names != [SCORE]:
            raise ThroughlineError(
                f"{path} has inputs {kinds} and outputs {names}: a served model has {NUMERIC}, {CATEGORICAL} "
                f"and {SCORE}; build it with onnx_graph.compose."
            )
        return cls(session, *lists, digest, len(content))

    def score(self, features: pl.DataFrame) -> np.ndarray:
        """Probability of the positive class, float64 [rows]. Columns beyond the model's own are ignored."""
        return self.run(*self.matrices(features))

    def outside_domain(self, features: pl.DataFrame) -> list[list[str]]:
        """Per row the features whose value the model was not trained on. Missing is never outside."""
        return self.outside(*self.matrices(features))

    def run(self, numeric: np.ndarray, words: np.ndarray) -> np.ndarray:
        """float32 [rows, numeric features] (NaN: missing), objects [rows, categorical] ("": missing) -> as `score`."""
        if len(numeric) == 0:
            return np.zeros(0)
        feeds = {NUMERIC: numeric, CATEGORICAL: words}
        (scores,) = self._session.run(_OUTPUTS, {name: feeds[name] for name in self._inputs})
        return scores.astype(np.float64)

    def outside(self, numeric: np.ndarray, words: np.ndarray) -> list[list[str]]:
        """As `outside_domain`, of the arrays that `run` takes."""
        outside = (numeric < self._low) | (numeric > self._high)
        found = [[self.numeric[place] for place in np.flatnonzero(row)] if row.any() else [] for row in outside]
        for row, values in enumerate(words):
            for place, value in enumerate(values):
                if value not in self._known[place]:
                    found[row].append(self.categorical[place])
        return found

    def words(self, columns: Sequence[Sequence[Any]], rows: int) -> np.ndarray:
        """Values of each categorical feature (None: missing) -> objects [rows, categorical]."""
        texts = [["" if v is None else v for v in column] for column in columns]
        if not all(isinstance(v, str) for column in texts for v in column):
            texts = [[v if isinstance(v, str) else _text(v) for v in column] for column in texts]
        words = np.empty((rows, len(texts)), object)
        for place, column in enumerate(texts):
            words[:, place] = column
        return words

    def matrices(self, features: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """A frame of features -> what `run` takes."""
        self._require(features.columns)
        try:
            numeric = numeric_matrix(features, self.numeric)
            words = features.select(pl.col(name).cast(pl.String).fill_null("") for name in self.categorical)
        except pl.exceptions.PolarsError as error:
            raise _wrong_type(error) from error
        columns = [words[name].to_numpy() for name in self.categorical]
        shape = (features.height, len(columns))
        categorical = np.stack(columns, axis=1).astype(object) if columns else np.empty(shape, dtype=object)
        return np.ascontiguousarray(numeric), categorical

    def _require(self, given: Container[str]) -> None:
        if missing := [name for name in (*self.numeric, *self.categorical) if name not in given]:
            remedy = "the feature service and the model must be of the same version"
            raise ThroughlineError(f"Feature(s) {', '.join(missing)} not given to the model: {remedy}.")


def _wrong_type(error: Exception) -> ThroughlineError:
    return ThroughlineError(
        f"A feature has a value of the wrong type ({str(error).splitlines()[0]}): "
        "numeric features are numbers, categorical ones strings."
    )


def _text(value: Any) -> str:
    return pl.Series([value]).cast(pl.String)[0]


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def session_of(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on CPU cores for the bytes of an ONNX file."""
    import onnxruntime  # postpones onnxruntime, which what only names a digest does not need

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _refuse_foreign(content: bytes, where: Path) -> None:
    import onnx  # postpones onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise ThroughlineError(f"{where} is not an ONNX model: deploy the version again.") from error
    foreign = {entry.domain for entry in model.opset_import} - _DOMAINS
    if foreign or model.functions:
        raise ThroughlineError(
            f"{where} uses operators of {', '.join(sorted(foreign)) or 'its own'}: only standard ONNX is served."
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise ThroughlineError(f"{where} keeps weights in other files: a served model is one file.")


def _tensors(graph: Any) -> Iterator[Any]:
    """Every constant of a graph, also those in attributes and in the branches of control flow."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)
