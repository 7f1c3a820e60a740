"""`throughline cost` over a real MLflow server and a real inference log."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from typer.testing import CliRunner

from tests.support.events import event, rows
from throughline.cli.main import app
from throughline.events.table import LogTable
from throughline.foundation.settings import Settings
from throughline.mlflow.tags import encode

pytestmark = pytest.mark.e2e

NAME = "flight_delay"


@pytest.fixture(scope="module")
def spent(home_with_mlflow: Settings) -> Settings:
    """A version of a run of 60 s on two workers, chosen by a search of two trials of 10 s, and a failed run of 5 s."""
    folder = home_with_mlflow.home / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x" * 1000)
    with httpx.Client(base_url=f"{home_with_mlflow.url('mlflow')}/api/2.0/mlflow/") as mlflow:

        def post(path: str, **content: object) -> dict:
            return mlflow.post(path, json=content).raise_for_status().json()

        experiment = post("experiments/create", name=NAME)["experiment_id"]

        def run(lasted: float, processes: int | None, parent: str = "", status: str = "FINISHED") -> str:
            tags = [{"key": "mlflow.parentRunId", "value": parent}] if parent else []
            made = post("runs/create", experiment_id=experiment, start_time=1_000_000, tags=tags)
            run_id = made["run"]["info"]["run_id"]
            if processes:
                values = {"processes": str(processes), "threads": "1"}
                post("runs/log-batch", run_id=run_id, params=[{"key": k, "value": v} for k, v in values.items()])
            post("runs/update", run_id=run_id, status=status, end_time=int(1_000_000 + lasted * 1000))
            return run_id

        search = run(25, None)
        run(10, 1, parent=search)
        run(10, 1, parent=search)
        run(5, 2, status="FAILED")
        post("registered-models/create", name=NAME)
        tags = encode({"sha256": "0" * 64, "trainer": "mlp", "search": search, "uri": str(folder)})
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        run_id = run(60, 2)
        source = mlflow.get("runs/get", params={"run_id": run_id}).json()["run"]["info"]["artifact_uri"]
        post("model-versions/create", name=NAME, source=source, run_id=run_id, tags=listed)
    LogTable(home_with_mlflow, NAME).append(rows([event(id=uuid4(), sequence=n, model_version=1) for n in (1, 2)]))
    return home_with_mlflow


def test_seconds_and_bytes_stand_by_version_and_what_gave_none_beside_them(
    spent: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THROUGHLINE_HOME", str(spent.home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", str(spent.port_base))
    printed = CliRunner().invoke(app, ["cost", NAME, "--json"])
    assert printed.exit_code == 0, printed.output
    (cost,) = json.loads(printed.stdout)
    assert set(cost) == {
        "usecase", "versions", "other_runs", "other_training_s", "other_core_s", "training_s", "training_core_s",
        "serving_s", "predictions", "tables", "table_bytes", "model_bytes",
    }  # fmt: skip
    (version,) = cost["versions"]
    assert version["model"] == f"{NAME}/1"
    assert (version["training_s"], version["search_runs"], version["search_s"]) == (60, 2, 20)
    assert version["training_core_s"] == 140
    assert (cost["other_runs"], cost["other_training_s"], cost["other_core_s"]) == (1, 5, 10)
    assert (cost["training_s"], cost["training_core_s"]) == (85, 150)
    assert version["predictions"] == version["production_predictions"] == cost["predictions"] == 2
    assert version["serving_s"] == pytest.approx(cost["serving_s"])
    assert version["serving_s"] > 0
    assert version["bytes"] == cost["model_bytes"] == 1000
    assert cost["table_bytes"] == sum(cost["tables"].values()) > 0

    shown = CliRunner().invoke(app, ["cost", NAME]).stdout
    assert f"{NAME}/1" in shown
    assert "1 runs without a version" in shown
    assert "60.0 s" in shown


def test_an_unknown_use_case_and_an_mlflow_that_is_down_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THROUGHLINE_HOME", str(tmp_path))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "64980")
    for arguments, problem in ((["cost", "nobody"], "nobody"), (["cost", NAME], "throughline up")):
        failed = CliRunner().invoke(app, arguments)
        assert failed.exit_code != 0
        assert problem in str(failed.exception)
