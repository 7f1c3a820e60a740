"""Signs a folder with a model.onnx as a registration does, without a registry."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from throughline.foundation.settings import Settings
from throughline.models import provenance
from throughline.models.provenance import Provenance
from throughline.models.served_model import sha256_of
from throughline.records import ModelRecord


def seal_model(
    settings: Settings, folder: Path, version: int = 1, name: str = "flight_delay", **facts: Any
) -> ModelRecord:
    """Sign the files in the folder; returns the record of the version. `facts`: of its rows and its training."""
    statement = Provenance(
        name=name,
        sha256=sha256_of(folder / "model.onnx"),
        **{
            "run_id": "r",
            "dataset_fingerprint": "f",
            "trained_until": datetime(2013, 3, 17, tzinfo=UTC),
            "trainer": "t",
            "parameters": {},
            "tags": {},
            **facts,
        },
    )
    provenance.seal(settings, folder, statement)
    return ModelRecord(version=version, uri=str(folder), **statement.model_dump(exclude={"tags"}))
