"""A real MLflow keeps the signed folder as it was signed, beyond this machine, too; what was tampered with stays there.

The server keeps artifacts where only it can see them: they are given and fetched over HTTP.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_store_server import USECASE, model_bytes
from tests.support.mlflow_server import mlflow_server
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import current_principal
from throughline.foundation.settings import Settings
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.models.signing import SIGNATURE, verify
from throughline.records import ModelRecord
from throughline.registry import history
from throughline.registry import versions as models

FILES = {"MLmodel", "conda.yaml", "model.onnx", "provenance.json", "python_env.yaml", "requirements.txt", SIGNATURE}


class Payload:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def settings(tmp_path_factory, store) -> Iterator[Settings]:
    with mlflow_server(tmp_path_factory.mktemp("home"), artifacts=store) as settings:
        yield settings


@pytest.fixture
def record(settings, tmp_path) -> ModelRecord:
    return register(settings, tmp_path)


def register(settings: Settings, folder: Path, run_id: str | None = None, **tags: str) -> ModelRecord:
    file = folder / "output.onnx"
    file.write_bytes(model_bytes())
    if run_id is None:
        with tracked_run(client_of(settings), USECASE, {}, {}) as run_id:
            pass
    return models.register(
        settings,
        name=USECASE,
        run_id=run_id,
        file=file,
        dataset_fingerprint="f",
        trained_until=datetime(2013, 3, 17, tzinfo=UTC),
        trainer="t",
        parameters={},
        tags=tags,
    )


def kept(store: Path, settings: Settings, record: ModelRecord) -> Path:
    """The version's folder, where only the server looks."""
    return store / Path(record.uri).relative_to(settings.mlflow_home / "artifacts")


def test_the_store_holds_the_signed_folder_as_it_was_signed(settings, store, record, tmp_path):
    folder = kept(store, settings, record)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == FILES
    assert verify(settings, folder).keys() == FILES - {SIGNATURE}
    assert not Path(record.uri).exists()
    file = models.fetch(settings, record, tmp_path / "copy")
    assert {path.name for path in file.parent.iterdir()} == FILES
    assert file.read_bytes() == model_bytes()


def test_a_registration_is_recorded_once_with_its_actor(settings, tmp_path):
    mine = register(settings, tmp_path)
    again = register(settings, tmp_path, run_id=mine.run_id)
    theirs = register(settings, tmp_path, submitter="ada")
    assert again == mine
    recorded = [
        (event.target, event.actor, event.new)
        for event in history.events(settings, USECASE, action="registered")
        if event.target in map(str, (mine.reference, theirs.reference))
    ]
    assert recorded == [
        (str(mine.reference), current_principal(settings).name, mine.sha256),
        (str(theirs.reference), "ada", theirs.sha256),
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("model.onnx", r"changed: model.onnx"),
        ("MLmodel", r"changed: MLmodel"),
        ("model.pkl", r"added: model.pkl"),
        ("data/model.pkl", r"added: data/model.pkl"),
        (SIGNATURE, r"no valid signature"),
    ],
)
def test_a_pickle_in_the_store_is_neither_loaded_nor_run(settings, store, record, tmp_path, name, problem):
    trace = tmp_path / "the-payload-ran"
    place = kept(store, settings, record) / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ThroughlineError, match=rf"^Model {record.reference} is refused: .*{problem}"):
        models.fetch(settings, record, tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())
    assert not trace.exists()
    (event,) = history.events(settings, USECASE, target=record.reference, action="refused")
    assert "refused" not in event.reason


def test_another_versions_folder_in_its_place_is_refused(settings, store, record, tmp_path):
    with tracked_run(client_of(settings), USECASE, {}, {}) as run_id:
        pass
    file = tmp_path / "other.onnx"
    file.write_bytes(model_bytes(bias=2.0))
    other = models.register(
        settings, name=USECASE, run_id=run_id, file=file, dataset_fingerprint="f",
        trained_until=record.trained_until, trainer="t", parameters={},
    )  # fmt: skip
    mine, theirs = kept(store, settings, record), kept(store, settings, other)
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    with pytest.raises(ThroughlineError, match="signed, but holds another model"):
        models.fetch(settings, record, tmp_path / "copy")
    assert models.fetch(settings, other, tmp_path / "other").read_bytes() == file.read_bytes()


def test_a_missing_folder_is_an_error_and_no_refusal(settings, store, record, tmp_path):
    shutil.rmtree(kept(store, settings, record))
    with pytest.raises(ThroughlineError, match="MLflow cannot send it"):
        models.fetch(settings, record, tmp_path / "copy")
    assert not history.events(settings, USECASE, target=record.reference, action="refused")


def test_standard_mlflow_loads_a_signed_version(settings, record):
    import mlflow

    mlflow.set_tracking_uri(settings.url("mlflow"))
    loaded = mlflow.pyfunc.load_model(f"models:/{record.name}/{record.version}")
    scores = loaded.predict({"numeric": np.float32([[5.0, 1.0]]), "categorical": np.array([["B6"]], dtype=object)})
    assert 0 < scores["score"][0] < 1
