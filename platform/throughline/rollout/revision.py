"""A revision: one deployed model version with its config, as the file the model server loads.

Owns: `serving/<usecase>/revision.json`. Does not own: which version is deployed, serving it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from throughline.records import ModelRecord, Revision
from throughline.records.store import read_record, write_record

FILE = "revision.json"


def revision_of(usecase: str, model: ModelRecord, deployed_at: datetime) -> Revision:
    """The revision of a model version that takes all traffic; its id depends on version and file only."""
    return Revision(
        revision=f"v{model.version}-{model.sha256[:12]}",
        usecase=usecase,
        name=model.name,
        version=model.version,
        sha256=model.sha256,
        file=f"{model.version}/model.onnx",
        deployed_at=deployed_at,
    )


def read_revision(folder: Path) -> Revision | None:
    """The revision in the folder of a use case; None when nothing was deployed. Raises `ThroughlineError`."""
    return read_record(folder / FILE, Revision, "deploy the version again")


def write_revision(folder: Path, revision: Revision) -> None:
    """Atomically: a reader sees the old revision or the new one."""
    write_record(folder / FILE, revision)
