"""The files of records: the newest record of each asset under the home, and records in files of other packages.

Owns: how a record is written and read. Does not own: the fields (`records/`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError, first_problem
from throughline.foundation.files import write_atomic
from throughline.foundation.settings import Settings
from throughline.records import Record

R = TypeVar("R", bound=Record)


def _path(settings: Settings, key: tuple[str, ...]) -> Path:
    return settings.records.joinpath(*key).with_suffix(".json")


def save_record(settings: Settings, key: tuple[str, ...], record: Record) -> None:
    """Replace the newest record of an asset."""
    write_record(_path(settings, key), record)


def find_record(settings: Settings, key: tuple[str, ...], kind: type[R]) -> R | None:
    """The newest record of an asset, None when it never had one. Raises when the file is not such a record."""
    return read_record(_path(settings, key), kind, f"materialise {'/'.join(key)} again")


def load_record(settings: Settings, key: tuple[str, ...], kind: type[R]) -> R:
    """The newest record of an asset. Raises when there is none."""
    record = find_record(settings, key, kind)
    if record is None:
        raise ThroughlineError(f"No record of {'/'.join(key)} in {settings.records}: materialise it first.")
    return record


def recorded_values(folder: Path, skipped: str) -> Iterator[Any]:
    """Every value, of any depth, in the records under a folder. Raises when one cannot be read: `skipped` is then not
    done, because it is unknown what the record names."""
    for file in sorted(folder.rglob("*.json")):
        try:
            yield from _values(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise ThroughlineError(
                f"Record {file} cannot be read ({type(error).__name__}), so it is unknown what it names: {skipped}. "
                "Materialise its asset again, or remove the file."
            ) from error


def _values(content: Any) -> Iterator[Any]:
    yield content
    if isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _values(part)


def write_record(path: Path, record: Record) -> None:
    """A record in a file of its own; a reader sees the old one or the new one, never half."""
    write_atomic(path, record.model_dump_json(indent=2))


def read_record(path: Path, kind: type[R], remedy: str) -> R | None:
    """A record in a file of its own, None when there is none. Raises with the field at fault and `remedy`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        where, problem = first_problem(error)
        at_fault = f"{where or 'content'}: {problem}"
        raise ThroughlineError(f"{path} is not a {kind.__name__} ({at_fault}): {remedy}.") from error
