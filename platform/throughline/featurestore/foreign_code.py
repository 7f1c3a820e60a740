"""What a Feast registry holds of code, and that none of it is run.

Feast keeps transformations pickled and as text, and brings them to life when it lists views: whoever can write the
registry could run code wherever it is read. Owns: that refusal. Does not own: code of ours (`delta_store.from_code`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from throughline.foundation.errors import ThroughlineError


def refuse_foreign_code(registry: Path, package: str) -> None:
    """Raises when the registry holds a function other than a plain import out of `package`; no file is no harm."""
    from feast.protos.feast.core.Registry_pb2 import Registry

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
                f"Registry {registry} holds code ({function.name or 'unnamed'}), which is never run from there: remove "
                f"the file, and give transformations as functions of {package}/ (delta_store.from_code)."
            )


def _functions(message: Message) -> Iterator[Message]:
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
