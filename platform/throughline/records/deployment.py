"""What serves: the endpoint, and the revision that the model server loads."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator

from throughline.foundation.references import ModelReference
from throughline.records.base import ModelFileRecord, Record


class EndpointRecord(ModelFileRecord):
    """What serves now."""

    usecase: str
    revision: str
    address: str
    deployed_at: datetime


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

    @property
    def model(self) -> ModelReference:
        return ModelReference(self.name, self.version)

    @field_validator("file")
    @classmethod
    def _stays_inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("must be a path inside the folder of the use case")
        return file
