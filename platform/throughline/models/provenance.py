"""What a version says of itself under its signature: its rows, its code, its training.

MLflow's tags say the same to people and searches; whoever reaches MLflow can change those, and not this.
Owns: the statement, writing it into a folder that is signed, comparing it with what somebody else says of the version.
Does not own: signatures (`signing.py`), when a comparison is made (`models.py`).
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
    """What is signed."""

    tags: dict[str, str] = Field(description="All that the version was registered with beside these, as MLflow has it.")

    @property
    def decoded(self) -> dict[str, Any]:
        return decode(self.tags)


def seal(settings: Settings, folder: Path, provenance: Provenance) -> None:
    """Add the statement to the files of a version, and sign them all."""
    write_record(folder / FILE, provenance)
    sign(settings, folder)


def read(folder: Path, where: object = None) -> Provenance:
    """Of a folder whose signature holds. Raises when it has none; `where`: what a refusal calls the folder."""
    found = read_record(folder / FILE, Provenance, "train it again")
    if found is None:
        raise ThroughlineError(f"{where or folder} does not say what it was made from (no {FILE}): train it again.")
    return found


def differences(provenance: Provenance, said: BaseModel) -> list[str]:
    """The fields that both have and that differ."""
    both = Provenance.model_fields.keys() & type(said).model_fields.keys()
    return sorted(field for field in both if getattr(provenance, field) != getattr(said, field))
