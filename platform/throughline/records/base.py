"""The base of every record, and of those about one registered file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from throughline.foundation.references import ModelReference


class Record(BaseModel):
    # NaN is written as "NaN" and read back: pydantic's default, null, would make a record that cannot be read.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ModelFileRecord(Record):
    """About a model version and the very file that was registered as it."""

    model: ModelReference
    sha256: str = Field(description="Of the ONNX file.")
