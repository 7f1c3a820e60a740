"""Where the records that steps hand over are kept: a JSON file per asset under the home; and records in other files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import write_atomic
from throughline.foundation.settings import Settings
from throughline.records import Record

R = TypeVar("R", bound=Record)


def _path(settings: Settings, key: tuple[str, ...]) -> Path:
    return settings.records.joinpath(*key).with_suffix(".json")


def save_record(settings: Settings, key: tuple[str, ...], record: Record) -> None:
    """Keep the newest record of an asset."""
    write_record(_path(settings, key), record)


def find_record(settings: Settings, key: tuple[str, ...], kind: type[R]) -> R | None:
    """The newest record of an asset, or None when it never had one. Raises when the file is not such a record."""
    path = _path(settings, key)
    try:
        return kind.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ThroughlineError(f"{path} is not a {kind.__name__}: materialise {'/'.join(key)} again.") from error


def write_record(path: Path, record: Record) -> None:
    """A record in a file of its own; a reader sees the old one or the new one, never half."""
    write_atomic(path, record.model_dump_json(indent=2))


def read_record(path: Path, kind: type[R], remedy: str) -> R | None:
    """A record in a file of its own, or None when there is none. Raises with the field at fault and `remedy`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise ThroughlineError(f"{path}: {where}: {first['msg']}; {remedy}.") from error


def load_record(settings: Settings, key: tuple[str, ...], kind: type[R]) -> R:
    """The newest record of an asset. Raises when there is none."""
    record = find_record(settings, key, kind)
    if record is None:
        raise ThroughlineError(f"No record of {'/'.join(key)} in {settings.records}: materialise it first.")
    return record
