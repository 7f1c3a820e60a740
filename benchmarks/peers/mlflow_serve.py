"""MLflow's scoring server over the same ONNX file: what `mlflow models serve --env-manager local` starts, one worker.

Owns: the MLflow folder of the model, and that process. It is sent feature values: MLflow has no look-up and no log.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import uvicorn


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
    """`FILE FOLDER PORT`: wait for the file, save it, serve it in this process, which has imported MLflow by then."""
    import mlflow.onnx  # noqa: F401  # imported while the file is made
    from mlflow.pyfunc import scoring_server

    file, folder, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    while not file.exists():
        time.sleep(0.1)
    save(file, folder)
    _, environment = scoring_server.get_cmd(str(folder))
    os.environ.update(environment)  # names the model to the app, which reads it at import
    uvicorn.run(
        "mlflow.pyfunc.scoring_server.app:app", host="127.0.0.1", port=port, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    main()
