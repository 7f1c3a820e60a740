"""MLflow's scoring server over the same ONNX file: what `mlflow models serve --env-manager local --workers 1` starts.

Owns: the MLflow folder of the model, and that process. It is sent feature values: MLflow has no look-up and no log.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path


def save(file: Path, folder: Path) -> None:
    """The model as `mlflow.onnx` saves it, with the session options that our server uses."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = onnx.load(str(file))
    kinds = {1: "float32", 8: "O"}
    inputs = [
        TensorSpec(
            np.dtype(kinds[each.type.tensor_type.elem_type]),
            (-1, each.type.tensor_type.shape.dim[1].dim_value or -1),
            each.name,
        )
        for each in model.graph.input
    ]
    mlflow.onnx.save_model(
        model,
        str(folder),
        signature=ModelSignature(inputs=Schema(inputs)),
        pip_requirements=[],  # otherwise MLflow loads the model in another process to find out
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1},
    )


def main() -> None:
    """`FILE FOLDER PORT`: save, then become the server."""
    from mlflow.pyfunc.scoring_server import get_cmd

    file, folder, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    save(file, folder)
    command, environment = get_cmd(str(folder), port=port, host="127.0.0.1", nworkers=1)
    words = [sys.executable, "-m", *shlex.split(command), "--log-level", "warning", "--no-access-log"]
    os.execve(sys.executable, words, environment)


if __name__ == "__main__":
    main()
