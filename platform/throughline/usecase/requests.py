"""Instances of the declared request fields: parsing into typed columns, and the key of a row.

Owns: which values are accepted for each declared type. Does not own: the protocols of requests (`serving`), features.
A column is a list of plain values: text, int, float, and microseconds since 1970 (UTC) for a timestamp; None: null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from throughline.foundation.errors import ThroughlineError
from throughline.usecase import RequestField, UseCase

if TYPE_CHECKING:
    import polars as pl

MAX_INSTANCES = 1000
MAX_TEXT = 256
KEY_SEPARATOR = "|"

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class BadRequest(ThroughlineError):
    """A request with a value that is not accepted; `field` names the part at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")


Columns = dict[str, list[Any]]


def parse_columns(usecase: UseCase, instances: Sequence[Any]) -> Columns:
    """Instances (objects with exactly the declared fields) -> a column per field, in the declared order. Null (or an
    empty text) is accepted for nullable fields only. Raises `BadRequest`."""
    if not instances:
        raise BadRequest("instances", "is empty: send at least one")
    if len(instances) > MAX_INSTANCES:
        raise BadRequest("instances", f"has {len(instances)} entries: send at most {MAX_INSTANCES} at once")
    columns: Columns = {name: [] for name in usecase.request}
    for position, instance in enumerate(instances):
        if not isinstance(instance, Mapping):
            raise BadRequest(
                f"instances[{position}]", f"is {_kind(instance)}: send an object with {', '.join(columns)}"
            )
        if instance.keys() != columns.keys():
            _refuse_fields(f"instances[{position}]", columns, instance)
        for name, field in usecase.request.items():
            try:
                columns[name].append(_parse(field, instance[name]))
            except ValueError as error:
                raise BadRequest(f"instances[{position}].{name}", str(error)) from None
    return columns


def parse_instances(usecase: UseCase, instances: Sequence[Any]) -> pl.DataFrame:
    """The instances as typed rows, timestamps in UTC. Raises as `parse_columns` does."""
    return request_frame(usecase, parse_columns(usecase, instances))


def request_frame(usecase: UseCase, columns: Mapping[str, Sequence[Any]]) -> pl.DataFrame:
    """The columns of a request as a frame."""
    import polars as pl  # postpones polars, which answering a request does not need

    types = {"string": pl.String, "integer": pl.Int64, "number": pl.Float64, "timestamp": pl.Datetime("us", "UTC")}
    return pl.DataFrame([pl.Series(name, columns[name], types[field.type]) for name, field in usecase.request.items()])


def example_instance(usecase: UseCase) -> dict[str, Any]:
    """The declaration's own example of a request."""
    return {name: field.example for name, field in usecase.request.items()}


def row_keys(usecase: UseCase, frame: pl.DataFrame) -> pl.Series:
    """The key that joins predictions and outcomes, a text per row: the declared fields, instants in UTC with `Z`."""
    import polars as pl  # see above

    parts = [
        (
            pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
            if usecase.request[name].type == "timestamp"
            else pl.col(name).cast(pl.String)
        ).fill_null("")
        for name in usecase.prediction.key
    ]
    return frame.select(pl.concat_str(parts, separator=KEY_SEPARATOR).alias("row_key"))["row_key"]


def row_key(usecase: UseCase, columns: Mapping[str, Sequence[Any]], row: int) -> str:
    """`row_keys` of one row of a request. Numbers that are no integers cannot be part of a key."""
    parts = []
    for name in usecase.prediction.key:
        value = columns[name][row]
        if value is None:
            parts.append("")
        elif usecase.request[name].type == "timestamp":
            parts.append(f"{instant_of(value).replace(tzinfo=None).isoformat(timespec='seconds')}Z")
        else:
            parts.append(str(value))
    return KEY_SEPARATOR.join(parts)


def instant_of(micros: int) -> datetime:
    """Microseconds since 1970 -> the instant in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


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
    # The rule of files, whose texts are UTF-8: what can be trained on can be requested.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{_shown(value)} holds half of a surrogate pair, which is no character") from None
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
    """Microseconds since 1970."""
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
