"""Instances of the declared request fields: parsing into typed rows, and the key of a row.

Owns: which values are accepted for each declared type. Does not own: the protocols of requests (`serving`), features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.usecase import RequestField, UseCase

MAX_INSTANCES = 1000
MAX_TEXT = 256
KEY_SEPARATOR = "|"

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_DTYPES = {
    "string": pl.String,
    "integer": pl.Int64,
    "number": pl.Float64,
    "timestamp": pl.Datetime("us", "UTC"),
}


class BadRequest(ThroughlineError):
    """A request with a value that is not accepted; `field` names the part at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")


def parse_instances(usecase: UseCase, instances: Sequence[Any]) -> pl.DataFrame:
    """Instances (objects with exactly the declared fields) -> one typed row each; timestamps in UTC. Null (or an empty
    text) is accepted for nullable fields only. Raises `BadRequest`."""
    if not instances:
        raise BadRequest("instances", "is empty: send at least one")
    if len(instances) > MAX_INSTANCES:
        raise BadRequest("instances", f"has {len(instances)} entries: send at most {MAX_INSTANCES} at once")
    columns: dict[str, list[Any]] = {name: [] for name in usecase.request}
    for position, instance in enumerate(instances):
        where = f"instances[{position}]"
        if not isinstance(instance, Mapping):
            raise BadRequest(where, f"is {_kind(instance)}: send an object with {', '.join(columns)}")
        if len(instance) != len(columns) or instance.keys() != columns.keys():
            _refuse_fields(where, columns, instance)
        for name, field in usecase.request.items():
            try:
                columns[name].append(_parse(field, instance[name]))
            except ValueError as error:
                raise BadRequest(f"{where}.{name}", str(error)) from None
    return pl.DataFrame([pl.Series(n, columns[n], _DTYPES[field.type]) for n, field in usecase.request.items()])


def example_instance(usecase: UseCase) -> dict[str, Any]:
    """The declaration's own example of a request."""
    return {name: field.example for name, field in usecase.request.items()}


def row_keys(usecase: UseCase, frame: pl.DataFrame) -> pl.Series:
    """The key that joins predictions and outcomes, a text per row: the declared fields, instants in UTC with `Z`."""
    parts = [
        (
            pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
            if usecase.request[name].type == "timestamp"
            else pl.col(name).cast(pl.String)
        ).fill_null("")
        for name in usecase.prediction.key
    ]
    return frame.select(pl.concat_str(parts, separator=KEY_SEPARATOR).alias("row_key"))["row_key"]


def _refuse_fields(where: str, columns: Mapping[str, Any], instance: Mapping[str, Any]) -> None:
    if missing := [name for name in columns if name not in instance]:
        raise BadRequest(f"{where}.{missing[0]}", "is missing")
    unknown = next(name for name in instance if name not in columns)
    raise BadRequest(f"{where}.{_shown(unknown)}", f"is not a field of the request: known are {', '.join(columns)}")


def _parse(field: RequestField, value: Any) -> Any:
    if value is None or (value == "" and field.type in ("string", "timestamp")):
        if field.nullable:
            return None
        raise ValueError("must not be null" if value is None else "must not be empty")
    return _PARSERS[field.type](value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {_kind(value)}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"has {len(value)} characters: at most {MAX_TEXT}")
    # Control characters would end up in keys and logs; a lone surrogate cannot even be stored as UTF-8.
    if not value.isprintable():
        raise ValueError(f"{_shown(value)} holds characters that cannot be printed")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be an integer, not {_kind(value)}")
    if not -(2**63) <= value < 2**63:
        raise ValueError("does not fit into 64 bits")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("must be finite")
    return number


def _timestamp(value: Any) -> int:
    """Microseconds since 1970: Polars takes them ten times faster than datetimes."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise ValueError("is not a timestamp: it is too long")
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            example = "2013-04-01T09:00:00-04:00"
            raise ValueError(f"{_shown(value)} is not an ISO 8601 timestamp, for example {example}") from None
    if not isinstance(value, datetime):
        raise ValueError(f"must be an ISO 8601 timestamp in a string, not {_kind(value)}")
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()} has no time zone: give one, for example {value.isoformat()}+00:00")
    try:
        return (value.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "string": _text,
    "integer": _integer,
    "number": _number,
    "timestamp": _timestamp,
}


def _kind(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return {str: "a string", list: "an array", dict: "an object"}.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    """A caller's text in a message: quoted, short, printable."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}...'"
