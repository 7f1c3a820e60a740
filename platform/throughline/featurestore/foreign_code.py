"""Refuses a Feast registry that holds code.

Feast stores transformations pickled and as text, and loads them when it lists views: who can write the registry could
run code in every process that reads it. Does not own: references to our own code (`delta_store.from_code`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feast.protos.feast.core.Registry_pb2 import Registry
from google.protobuf.message import DecodeError, Message

from throughline.foundation.errors import ThroughlineError


def refuse_foreign_code(registry: Path, package: str) -> None:
    """Raises when the registry file, if there is one, holds a function other than a plain import from `package`."""
    try:
        held = Registry.FromString(registry.read_bytes())
    except FileNotFoundError:
        return
    except DecodeError as error:
        raise ThroughlineError(
            f"Registry {registry} cannot be read: remove it, then materialise the feature store."
        ) from error
    ours = re.compile(rf"from {re.escape(package)}(\.\w+)* import \w+")
    for function in _functions(held):
        if function.body or not ours.fullmatch(function.body_text):
            raise ThroughlineError(
                f"Registry {registry} holds code ({function.name or 'unnamed'}), which is never run: remove the file, "
                f"and give transformations as functions of {package}/ (delta_store.from_code)."
            )


def _functions(message: Message) -> Iterator[Any]:
    """Every UserDefinedFunction message (of either version) within `message`."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            parts = [part for part in value.values() if isinstance(part, Message)]
        else:
            parts = value if field.is_repeated else [value]
        for part in parts:
            if part.DESCRIPTOR.name.startswith("UserDefinedFunction"):
                yield part
            else:
                yield from _functions(part)
