"""Signs a folder with a model.onnx as a registration does, without a registry; a release of the version."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from throughline.foundation.settings import Settings
from throughline.models import provenance
from throughline.models.provenance import Provenance
from throughline.models.served_model import sha256_of
from throughline.records import GateDecision, ModelRecord, RuleVerdict


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


def release_of(model: ModelRecord) -> GateDecision:
    """A decision of the gate that releases the version."""
    return GateDecision(
        model=model.reference,
        sha256=model.sha256,
        decision="release",
        decided_at=datetime.now(UTC),
        rules=[RuleVerdict(rule="auc", verdict="pass", value=0.75, bound="0.72 to 0.80")],
    )
