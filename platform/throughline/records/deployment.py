"""What serves: the endpoint, and the revisions that the model server loads."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from throughline.foundation.references import ModelReference
from throughline.records.base import ModelFileRecord, Record

Role = Literal["stable", "canary", "shadow"]


class EndpointRecord(ModelFileRecord):
    """What serves now."""

    usecase: str
    revision: str
    address: str
    deployed_at: datetime


class Revision(Record):
    """A deployed model version. `file` is relative to the folder of the use case, so that a home can be moved."""

    revision: str
    usecase: str
    name: str
    version: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file: str
    role: Role = "stable"
    weight: float = Field(1.0, ge=0, le=1, description="Share of the requests it answers; of a shadow: that it copies.")
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


class Sticky(Record):
    """Requests with the same value of a request field get the same revision, as long as the weights stay."""

    key: str = Field(description="Request field.")
    salt: str = Field(description="Of the experiment: another salt is another assignment.")


class RevisionSet(Record):
    """All revisions of a use case: one stable, and those that a rollout places beside it."""

    usecase: str
    revisions: tuple[Revision, ...]
    sticky: Sticky | None = None

    @property
    def stable(self) -> Revision:
        return next(revision for revision in self.revisions if revision.role == "stable")

    @model_validator(mode="after")
    def _answers_each_request_once(self) -> RevisionSet:
        if [revision.role for revision in self.revisions].count("stable") != 1:
            raise ValueError("must have one stable revision")
        if len({revision.revision for revision in self.revisions}) != len(self.revisions):
            raise ValueError("must not have the same revision twice")
        if any(revision.usecase != self.usecase for revision in self.revisions):
            raise ValueError(f"must have revisions of {self.usecase} only")
        weights = sum(revision.weight for revision in self.revisions if revision.role != "shadow")
        if abs(weights - 1) > 1e-9:
            raise ValueError(f"the weights of what answers must sum to 1, not {weights:g}")
        return self
