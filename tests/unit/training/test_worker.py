"""What a worker process loads: it starts on every training, once per worker, and again when it was lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training_home import write_dataset
from throughline.experiment.prepare import prepare
from throughline.experiment.spec import TrainingSpec
from throughline.foundation.settings import PROJECT_ROOT

# torch._dynamo is torch's compiler: 4 s of a core, loaded by the first step of a `torch.optim` optimizer.
NEVER = {
    *("dagster", "mlflow", "feast", "pyspark", "deltalake", "optuna", "kserve", "fastapi", "sqlalchemy"),
    *("httpx", "typer", "yaml", "torch._dynamo", "sympy", "onnxscript", "matplotlib"),
}
FORBIDDEN = {
    "mlp": {*NEVER, "rich", "pandas", "pyarrow", "scipy", "sklearn", "lightgbm"},
    "lightgbm": {*NEVER, "rich", "torch", "pandas", "pyarrow", "sklearn"},
    "logistic": {*NEVER, "torch", "lightgbm"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return prepare(folder / "prepared", write_dataset(folder, rows=1000), seed=0)


@pytest.mark.parametrize("trainer", FORBIDDEN)
def test_a_worker_loads_only_what_its_training_needs(trainer, prepared, tmp_path):
    short = {"mlp": {"epochs": 1}, "lightgbm": {"n_estimators": 5}, "logistic": {}}[trainer]
    spec = TrainingSpec(data=str(prepared), parameters=short, output=str(tmp_path / "output"))
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    program = (
        "import atexit, json, runpy, sys\n"
        "atexit.register(lambda: print('MODULES', json.dumps(sorted(sys.modules))))\n"
        f"runpy.run_module('training.trainers.{trainer}', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "spec.json")],
        cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "model.onnx").exists()
    loaded = json.loads(done.stdout.rpartition("MODULES ")[2])
    assert FORBIDDEN[trainer] & set(loaded) == set()


@pytest.mark.parametrize("trainer", [*FORBIDDEN, "ensemble", "keras_mlp"])
def test_checking_a_trainers_parameters_loads_no_framework(trainer):
    program = f"import sys, training.trainers.{trainer}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    frameworks = {"torch", "keras", "tensorflow", "lightgbm", "sklearn", "scipy", "onnx", "onnxruntime", "pandas"}
    assert (NEVER | frameworks) & set(done.stdout.split()) == set()
