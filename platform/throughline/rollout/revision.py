"""A revision: one deployed model version with its config, as the file the model server loads.

Owns: `serving/<usecase>/revision.json` and its meaning. Does not own: deciding about it, or serving it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from throughline import recordstore
from throughline.records import ModelRecord, Record

FILE = "revision.json"


class Revision(Record):
    """`file` is relative to the folder of the use case, so that a home can be moved."""

    revision: str
    usecase: str
    name: str
    version: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file: str
    role: Literal["stable", "canary", "shadow"] = "stable"
    share: float = Field(1.0, ge=0, le=1)
    alias: str | None = "champion"
    deployed_at: datetime

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("must be a path inside the folder of the use case")
        return file


def revision_of(usecase: str, model: ModelRecord, deployed_at: datetime) -> Revision:
    """The revision of a model version that takes all traffic. The same version and file: the same identity."""
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
    return recordstore.read_file(folder / FILE, Revision, "deploy the version again")


def write_revision(folder: Path, revision: Revision) -> None:
    """Atomically: a reader sees the old revision or the new one."""
    recordstore.write_file(folder / FILE, revision)
