"""The two names that everything else is traced by: a table at a version, a version of a registered model.

Each is one type with one parser. Both are immutable, hashable and ordered, so they serve as keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from throughline.foundation.errors import ThroughlineError

_TABLE = re.compile(r"(?P<table>[^/@\s]+/[^/@\s]+/[^/@\s]+)@(?P<version>\d+)", re.ASCII)
_MODEL = re.compile(r"(?P<name>[^/\s]+)/(?P<version>[1-9]\d*)", re.ASCII)


class TableReference(BaseModel):
    """A Delta table at a version, written USECASE/LAYER/TABLE@VERSION. OPTIMIZE or a retry may change the version of
    the same content; a fingerprint does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str = Field(description="USECASE/LAYER/TABLE")
    version: int

    @classmethod
    def parse(cls, text: str) -> TableReference:
        """Raises `ThroughlineError` for anything but USECASE/LAYER/TABLE@VERSION."""
        match = _TABLE.fullmatch(text)
        if match is None:
            raise ThroughlineError(f"{text!r} is no table version: write USECASE/LAYER/TABLE@VERSION.")
        return cls(table=match["table"], version=int(match["version"]))

    @property
    def usecase(self) -> str:
        return self.table.partition("/")[0]

    def __str__(self) -> str:
        return f"{self.table}@{self.version}"


@total_ordering
@dataclass(frozen=True)
class ModelReference:
    """A version of a registered model, written NAME/VERSION; in JSON it is that string."""

    name: str
    version: int

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Raises `ThroughlineError` for anything but NAME/VERSION with a version of 1 or more."""
        match = _MODEL.fullmatch(text)
        if match is None:
            raise ThroughlineError(f"{text!r} is no model version: write NAME/VERSION, for example returns/3.")
        return cls(match["name"], int(match["version"]))

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def __lt__(self, other: ModelReference) -> bool:
        return (self.name, self.version) < (other.name, other.version)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: Any) -> ModelReference:
            if isinstance(value, cls):
                return value
            try:
                return cls.parse(value if isinstance(value, str) else repr(value))
            except ThroughlineError as error:
                raise ValueError(str(error)) from None

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )
