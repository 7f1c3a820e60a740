"""References to a table at a version and to a version of a registered model.

Each is one type with one parser and one text form, which is also its JSON. Both are immutable, hashable and ordered.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from throughline.foundation.errors import ThroughlineError

_TABLE = re.compile(r"(?P<table>[\w-]+/[\w-]+/[\w-]+)@(?P<version>\d{1,18})", re.ASCII)
_MODEL = re.compile(r"(?P<name>[^/\s]+)/(?P<version>[1-9]\d{0,17})", re.ASCII)


class _Reference(ABC):
    """Validated by pydantic from its text, or from an instance; dumped to JSON as its text."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self: ...

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def validate(value: Any) -> Self:
            if isinstance(value, cls):
                return value
            try:
                return cls.parse(value if isinstance(value, str) else repr(value))
            except ThroughlineError as error:
                raise ValueError(str(error)) from None

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )


@dataclass(frozen=True, order=True)
class TableReference(_Reference):
    """A Delta table at a version, written USECASE/LAYER/TABLE@VERSION."""

    table: str  # USECASE/LAYER/TABLE
    version: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ThroughlineError` for anything but USECASE/LAYER/TABLE@VERSION."""
        match = _TABLE.fullmatch(text)
        if match is None:
            raise ThroughlineError(f"{text!r} is no table version: write USECASE/LAYER/TABLE@VERSION.")
        return cls(match["table"], int(match["version"]))

    @property
    def usecase(self) -> str:
        return self.table.split("/")[0]

    @property
    def layer(self) -> str:
        return self.table.split("/")[1]

    @property
    def name(self) -> str:
        """The last part, TABLE."""
        return self.table.split("/")[2]

    def __str__(self) -> str:
        return f"{self.table}@{self.version}"


@dataclass(frozen=True, order=True)
class ModelReference(_Reference):
    """A version of a registered model, written NAME/VERSION."""

    name: str
    version: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ThroughlineError` for anything but NAME/VERSION with a version of 1 or more."""
        match = _MODEL.fullmatch(text)
        if match is None:
            raise ThroughlineError(f"{text!r} is no model version: write NAME/VERSION, for example returns/3.")
        return cls(match["name"], int(match["version"]))

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"
