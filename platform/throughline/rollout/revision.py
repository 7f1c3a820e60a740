"""The revisions of a use case, as the file the model server loads.

Owns: `serving/<usecase>/revisions.json`. Does not own: which versions are deployed, serving them.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from throughline.records import ModelRecord, Revision, RevisionSet
from throughline.records.store import read_record, write_record

FILE = "revisions.json"


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


def only(revision: Revision) -> RevisionSet:
    """A set of one revision."""
    return RevisionSet(usecase=revision.usecase, revisions=(revision,))


def read_revisions(folder: Path) -> RevisionSet | None:
    """The revisions in the folder of a use case; None when nothing was deployed. Raises `ThroughlineError`."""
    return read_record(folder / FILE, RevisionSet, "deploy the version again")


def write_revisions(folder: Path, revisions: RevisionSet) -> None:
    """Atomically: a reader sees the old set or the new one."""
    write_record(folder / FILE, revisions)
