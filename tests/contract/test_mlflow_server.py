"""One MLflow server serves one test file after another, and none sees what another left."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.mlflow_server import EmptiedMlflow, mlflow_server

pytestmark = pytest.mark.e2e


def test_a_home_that_is_given_a_used_server_finds_it_empty(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as server:
        emptied = EmptiedMlflow(server)
        for number in range(2):
            folder = tmp_path / f"home-{number}"
            folder.mkdir()
            settings = emptied.home(folder)
            with httpx.Client(base_url=f"{settings.url('mlflow')}/api/2.0/mlflow/") as mlflow:
                assert mlflow.get("registered-models/get", params={"name": "m"}).status_code == 404
                assert mlflow.get("experiments/get-by-name", params={"experiment_name": "e"}).status_code == 404
                mlflow.post("registered-models/create", json={"name": "m"}).raise_for_status()
                mlflow.post("experiments/create", json={"name": "e"}).raise_for_status()
                assert mlflow.get("registered-models/get", params={"name": "m"}).is_success
            assert (settings.mlflow_home / "mlflow.db").exists()
