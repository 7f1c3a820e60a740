"""A BentoML service over the same ONNX file, one worker. Runs in an environment of its own, which has BentoML.

Owns: that service. It is sent feature values: BentoML has no look-up and no log of predictions.
"""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Scores:
    """`score` of [rows, numeric] numbers and [rows, categorical] texts."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api
    def score(self, numeric: list[list[float]], categorical: list[list[str]]) -> list[float]:
        feeds = {"numeric": np.array(numeric, np.float32), "categorical": np.array(categorical, object)}
        return self._session.run(None, feeds)[0].reshape(-1).tolist()
