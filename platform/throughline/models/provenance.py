"""The signed statement of what a version was made from: its rows, its code, its training.

MLflow's tags have the same for searches; who can write to MLflow can change those, but not this.
Owns: the statement, writing it into a folder that is signed, comparing it with another description of the version.
Does not own: signatures (`signing.py`), when a comparison is made (`registry/verification.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.mlflow.tags import decode
from throughline.models.signing import sign
from throughline.records import ModelOrigin
from throughline.records.store import read_record, write_record

FILE = "provenance.json"


class Provenance(ModelOrigin):
    tags: dict[str, str] = Field(description="All other tags that the version was registered with, as in MLflow.")

    @property
    def decoded(self) -> dict[str, Any]:
        return decode(self.tags)


def seal(settings: Settings, folder: Path, provenance: Provenance) -> None:
    """Add the statement to the files of a version, and sign them all."""
    write_record(folder / FILE, provenance)
    sign(settings, folder)


def read(folder: Path, where: object = None) -> Provenance:
    """Of a folder whose signature is valid. Raises when it has none; `where` names the folder in that error."""
    found = read_record(folder / FILE, Provenance, "train it again")
    if found is None:
        raise ThroughlineError(f"{where or folder} has no statement of its origin ({FILE}): train it again.")
    return found


def differences(provenance: Provenance, other: BaseModel) -> list[str]:
    """The fields that both have and that differ."""
    both = Provenance.model_fields.keys() & type(other).model_fields.keys()
    return sorted(field for field in both if getattr(provenance, field) != getattr(other, field))
