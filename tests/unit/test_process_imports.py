"""What each process may not import: what it does not use costs it seconds and memory at every start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from throughline.foundation.settings import PROJECT_ROOT

HEAVY = {"feast", "torch", "pyspark", "sklearn", "lightgbm", "keras", "optuna", "shap", "matplotlib", "evidently"}
PROCESSES = {
    "the command line before a command is chosen": (
        "import throughline.cli.main",
        HEAVY | {"dagster", "mlflow", "polars", "pandas", "pydantic", "httpx", "starlette", "grpc"},
    ),
    "the code location and each run": (
        "import assets.definitions",
        HEAVY | {"mlflow", "pandas", "onnx", "onnxruntime", "kserve", "kubernetes"},
    ),
    "Dagster's webserver and daemon, which import the run launcher": (
        "import assets.run_launcher",
        HEAVY | {"mlflow", "pandas", "polars", "numpy", "pyarrow", "deltalake", "dagster_dbt", "dbt"},
    ),
    # `throughline.services.mlflow_server` imports this application, which imports pyspark and polars
    "MLflow's server": ("import mlflow.server.fastapi_app", HEAVY - {"pyspark"} | {"dagster", "onnx", "onnxruntime"}),
    "the model server": (
        "import serving.__main__ as main; main.import_server_modules(); import serving.server",
        HEAVY | {"dagster", "mlflow", "pandas", "pyarrow", "deltalake", "kubernetes", "onnx"},
    ),
    "the collector": (
        "import throughline.events.collector",
        HEAVY | {"dagster", "mlflow", "pandas", "kserve", "kubernetes", "grpc", "onnx", "onnxruntime"},
    ),
    "a training's worker before its trainer is chosen": (
        "import training.worker",
        HEAVY | {"dagster", "mlflow", "pandas", "pyarrow", "deltalake", "horovod", "onnx", "onnxruntime"},
    ),
}


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_does_not_import_what_it_does_not_use(process: str) -> None:
    imports, unused = PROCESSES[process]
    code = f"import json, sys; {imports}; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT)
    assert unused & set(json.loads(done.stdout.splitlines()[-1])) == set()
