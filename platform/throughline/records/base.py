"""The base of every record."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    # NaN is written as "NaN" and read back: pydantic's default, null, would make a record that cannot be read.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")
