"""A bad model is refused in a process of its own, with the reason; the process that serves never loads it."""

from __future__ import annotations

from pathlib import Path

import onnx
import polars as pl
import pytest

from serving import loading
from tests.support.bad_models import bad_model
from tests.support.fake_store_server import USECASE, model_bytes, put_revision
from throughline.evaluation.background import background_of, served_path
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.models.served_model import ServedModel
from throughline.records import Revision
from throughline.records.store import write_record


@pytest.fixture
def limited(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, model_load_s=20, model_memory_mb=1024)


@pytest.fixture
def deployed(limited: Settings, monkeypatch: pytest.MonkeyPatch):
    """A signed and released revision of a model file."""

    def made(content: bytes) -> Revision:
        monkeypatch.setattr("tests.support.fake_store_server.model_bytes", lambda bias=0.0: content)
        return put_revision(limited)

    return made


def folder(settings: Settings) -> Path:
    return settings.serving_home / USECASE


def record(settings: Settings, revision: Revision, off: float = 0.0) -> None:
    """What the evaluation recorded about this file; `off`: by how much its scores differ."""
    served = ServedModel.load(folder(settings) / revision.file, revision.sha256)
    rows = pl.DataFrame({"departure_hour": [5.0, None], "aircraft_flights": [1.0, 9.0], "carrier": ["B6", None]})
    background = background_of(served, rows)
    scores = [score + off for score in background.scores]
    path = served_path(folder(settings), revision.sha256)
    write_record(path, background.model_copy(update={"scores": scores}))


def test_a_good_model_passes_once_and_is_not_tried_again(limited: Settings, deployed, monkeypatch) -> None:
    revision = deployed(model_bytes())
    record(limited, revision)
    loading.try_out(limited, folder(limited), revision)
    monkeypatch.setattr(loading.subprocess, "run", None)
    loading.try_out(limited, folder(limited), revision)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("garbage", "is not an ONNX model"),
        ("too large", r"needs more than 1024 MB \(THROUGHLINE_MODEL_MEMORY_MB\)"),
        ("hangs", r"did not load within 3 s \(THROUGHLINE_MODEL_LOAD_S\)"),
    ],
)
def test_a_model_that_cannot_be_tried_is_refused_with_the_reason(limited: Settings, deployed, kind, reason) -> None:
    revision = deployed(bad_model(kind))
    settings = limited.model_copy(update={"model_load_s": 3}) if kind == "hangs" else limited
    for _ in range(2):  # it has not passed, and is tried again
        with pytest.raises(ThroughlineError, match=reason):
            loading.try_out(settings, folder(limited), revision)
        if kind == "hangs":
            break


def test_a_model_that_kills_its_process_is_refused(limited: Settings, deployed, monkeypatch) -> None:
    revision = deployed(model_bytes())
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    plain = loading.subprocess.run
    monkeypatch.setattr(loading.subprocess, "run", lambda command, **how: plain([command[0], "-c", code], **how))
    with pytest.raises(ThroughlineError, match=r"crashed the process that tried it \(SIGSEGV\)"):
        loading.try_out(limited, folder(limited), revision)


def test_a_model_that_scores_otherwise_than_its_evaluation_is_refused(limited: Settings, deployed) -> None:
    revision = deployed(model_bytes())
    record(limited, revision, off=2 * loading.TOLERANCE)
    with pytest.raises(ThroughlineError, match="scores 2 of 2 recorded rows otherwise than its evaluation did"):
        loading.try_out(limited, folder(limited), revision)


def test_scores_that_are_no_probabilities_are_refused_also_without_recorded_rows(limited: Settings, deployed) -> None:
    model = onnx.load_model_from_string(model_bytes())
    (sigmoid,) = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    sigmoid.op_type = "Neg"
    revision = deployed(model.SerializeToString())
    with pytest.raises(ThroughlineError, match="no probabilities"):
        loading.try_out(limited, folder(limited), revision)


def test_a_model_of_another_digest_or_without_a_release_is_refused(limited: Settings, deployed) -> None:
    revision = deployed(model_bytes())
    with pytest.raises(ThroughlineError, match=r"is refused|was not released|no release"):
        loading.try_out(limited, folder(limited), revision.model_copy(update={"sha256": "1" * 64}))
