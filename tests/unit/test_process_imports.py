"""What each process may not import: what it does not use costs it seconds and memory at every start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from throughline.foundation.settings import PROJECT_ROOT

HEAVY = {"feast", "torch", "pyspark", "sklearn", "lightgbm", "keras", "optuna", "shap", "matplotlib", "evidently"}
PROCESSES = {
    # the command line before a command is chosen
    "throughline.cli.main": HEAVY | {"dagster", "mlflow", "polars", "pandas", "pydantic", "httpx", "starlette", "grpc"},
    # the code location, and each run, which loads the graph again
    "assets.definitions": HEAVY | {"mlflow", "pandas", "onnx", "onnxruntime", "kserve", "kubernetes"},
    # MLflow's server; `throughline.services.mlflow_server` imports this application, which imports pyspark and polars
    "mlflow.server.fastapi_app": HEAVY - {"pyspark"} | {"dagster", "onnx", "onnxruntime"},
}


@pytest.mark.parametrize("module", PROCESSES)
def test_a_process_does_not_import_what_it_does_not_use(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert PROCESSES[module] & set(json.loads(done.stdout.splitlines()[-1])) == set()
