"""Feast's online format, read without Feast: rows of feature views in the SQLite file or in Redis.

Owns: how an entity becomes a key (serialization version 3), how a value is decoded, where a row lies in either store,
and the record of the views to read. Does not own: writing (`online_stores.py`), what a request needs (`online.py`).
Importing Feast costs a process 0.7 GB, because it loads torch where that is installed. `unix_timestamp` values stay
seconds since 1970, as in Feast's own answer.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import mmh3

# protobuf makes the members of its modules when they are imported
from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,  # ty: ignore[missing-module-member]  # see above
    FileDescriptorProto,  # ty: ignore[missing-module-member]  # see above
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp  # ty: ignore[missing-module-member]  # see above
from pydantic import Field

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.records import Record
from throughline.records.store import read_record

if TYPE_CHECKING:
    from redis import Redis

CONNECT_S, ANSWER_S = 2, 5
DUMMY_KEY = "__dummy_id"  # the join key of a view that has one row for all

# Value types by Feast's names, in the order of their field numbers in its `Value`: scalars from 1, lists from 11.
_TYPES = {
    "BYTES": FieldDescriptorProto.TYPE_BYTES,
    "STRING": FieldDescriptorProto.TYPE_STRING,
    "INT32": FieldDescriptorProto.TYPE_INT32,
    "INT64": FieldDescriptorProto.TYPE_INT64,
    "DOUBLE": FieldDescriptorProto.TYPE_DOUBLE,
    "FLOAT": FieldDescriptorProto.TYPE_FLOAT,
    "BOOL": FieldDescriptorProto.TYPE_BOOL,
    "UNIX_TIMESTAMP": FieldDescriptorProto.TYPE_INT64,
}
VALUE_TYPES = {*_TYPES, *(f"{name}_LIST" for name in _TYPES)}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RANK_OFFSET = 2**62
_LENGTH, _INT32, _INT64 = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<q")
_STRING = _LENGTH.pack(2)
_KEY_TYPES: dict[str, tuple[bytes, Callable[[Any], bytes]]] = {
    "STRING": (_STRING, str.encode),
    "INT32": (_LENGTH.pack(3), _INT32.pack),
    "INT64": (_LENGTH.pack(4), _INT64.pack),
}

# Event time (UTC) and value per feature of one row; a feature without a value is None.
Row = tuple[datetime, dict[str, Any]]


class OnlineView(Record):
    """A feature view as requests read it; features without those that the feature service leaves out."""

    name: str
    entities: list[str]
    keys: dict[str, Literal["STRING", "INT32", "INT64"]] = Field(description="Join key -> type.")
    features: list[str]
    ttl: timedelta | None


class OnlineViews(Record):
    """The views of a use case's feature service, as last registered."""

    views: list[OnlineView]


def store_folder(settings: Settings, usecase: str) -> Path:
    """Where the feature store of a use case is kept."""
    return settings.feast_home / usecase


def views_path(settings: Settings, usecase: str) -> Path:
    return store_folder(settings, usecase) / "online_views.json"


def load_views(settings: Settings, usecase: str) -> list[OnlineView]:
    """The views as last registered. Raises when there are none."""
    path, remedy = views_path(settings, usecase), f"materialise {usecase}/features/feature_store"
    record = read_record(path, OnlineViews, remedy)
    if record is None:
        raise ThroughlineError(f"{path} is missing: {remedy}.")
    return record.views


def encode_rank(instant: datetime) -> str:
    """An instant as text of one length: comparing the texts compares the instants."""
    return f"{(instant - _EPOCH) // timedelta(microseconds=1) + _RANK_OFFSET:020d}"


def decode_rank(rank: str) -> datetime:
    return _EPOCH + timedelta(microseconds=int(rank[:20]) - _RANK_OFFSET)


def encode_keys(view: OnlineView, columns: Mapping[str, Sequence[Any]]) -> list[bytes | None]:
    """The entity keys of N entities, given as N values per join key.

    None where no entity has these values: one is missing, or beyond its type.
    """
    names = sorted(view.keys)
    prefix = _LENGTH.pack(len(names)) + b"".join(_STRING + _sized(name.encode()) for name in names)
    types = [_KEY_TYPES[view.keys[name]] for name in names]
    return [_encode(prefix, types, values) for values in zip(*(columns[name] for name in names), strict=True)]


def _encode(prefix: bytes, types: list[tuple[bytes, Callable[[Any], bytes]]], values: Sequence[Any]) -> bytes | None:
    if None in values:
        return None
    try:
        return prefix + b"".join(code + _sized(pack(value)) for (code, pack), value in zip(types, values, strict=True))
    except struct.error:
        return None


def _sized(content: bytes) -> bytes:
    return _LENGTH.pack(len(content)) + content


class OnlineRows(Protocol):
    """The rows of an online store, which others may be writing meanwhile; safe to share between threads.

    near: reading needs no other process.
    """

    near: bool

    def version(self) -> int | None:
        """Another number after the store was written; None where that cannot be seen."""
        ...

    def fetch(self, wanted: Sequence[tuple[OnlineView, Sequence[bytes]]]) -> list[dict[bytes, Row]]:
        """Per view and its entity keys, the rows that are there."""
        ...


class SqliteRows:
    """Rows in the file that `NewestSqliteOnlineStore` writes; all views are read by one statement, at one instant."""

    near = True

    def __init__(self, path: Path, project: str) -> None:
        if not path.exists():
            raise ThroughlineError(f"{path} is missing: materialise the feature store of {project}.")
        self._project = project
        self._connection = sqlite3.connect(path, check_same_thread=False)

    def version(self) -> int | None:
        return self._connection.execute("PRAGMA data_version").fetchone()[0]

    def fetch(self, wanted: Sequence[tuple[OnlineView, Sequence[bytes]]]) -> list[dict[bytes, Row]]:
        statement = _statement(self._project, tuple((view.name, len(keys)) for view, keys in wanted))
        found: list[dict[bytes, Row]] = [{} for _ in wanted]
        if not statement:
            return found
        parameters = [key for _, keys in wanted for key in keys]
        for place, key, name, value, rank in self._connection.execute(statement, parameters).fetchall():
            rows = found[place]
            row = rows.get(key)
            if row is None:
                row = rows[key] = (decode_rank(rank), dict.fromkeys(wanted[place][0].features))
            if name in row[1]:
                row[1][name] = _decode(value)
        return found


@lru_cache(maxsize=64)
def _statement(project: str, views: tuple[tuple[str, int], ...]) -> str:
    """Reads a number of entities of each view; empty when there is none."""
    parts = []
    for place, (view, count) in enumerate(views):
        table = f"{project}_{view}".replace('"', '""')
        if count:
            parts.append(
                f'SELECT {place}, entity_key, feature_name, value, rank FROM "{table}" '
                f"WHERE entity_key IN ({','.join('?' * count)})"
            )
    return " UNION ALL ".join(parts)


class RedisRows:
    """Rows in the hashes that `NewestRedisOnlineStore` writes; all views are read by one pipeline."""

    near = False

    def __init__(self, url: str, project: str) -> None:
        self._project = project.encode()
        self._client = connect_redis(url)

    def version(self) -> int | None:
        return None

    def fetch(self, wanted: Sequence[tuple[OnlineView, Sequence[bytes]]]) -> list[dict[bytes, Row]]:
        with self._client.pipeline(transaction=False) as pipe:
            for view, keys in wanted:
                fields = [f"_ts:{view.name}", *(feature_field(view.name, name) for name in view.features)]
                for key in keys:
                    # redis-py takes keys of bytes, its annotation does not
                    pipe.hmget(key + self._project, fields)  # ty: ignore[invalid-argument-type]  # see above
            answers = iter(pipe.execute())
        found = []
        for view, keys in wanted:
            rows = {key: next(answers) for key in keys}
            found.append({key: _redis_row(view, *row) for key, row in rows.items() if row[0] is not None})
        return found


def _redis_row(view: OnlineView, stamp: bytes, *values: bytes | None) -> Row:
    event = Timestamp.FromString(stamp)
    at = _EPOCH + timedelta(seconds=event.seconds, microseconds=event.nanos // 1000)
    return at, {
        name: None if value is None else _decode(value) for name, value in zip(view.features, values, strict=True)
    }


def open_rows(settings: Settings, usecase: str) -> OnlineRows:
    """The online store of a use case. Raises when the file is missing; Redis is connected to by the first read."""
    if settings.online_store is not None:
        return RedisRows(settings.online_store.get_secret_value(), usecase)
    return SqliteRows(store_folder(settings, usecase) / "online.db", usecase)


def connect_redis(url: str) -> Redis:
    from redis import Redis  # postpones redis, which a home on SQLite never uses

    return Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=ANSWER_S)


@cache
def feature_field(view: str, feature: str) -> bytes:
    """The field of an entity's hash that holds a feature."""
    return _LENGTH.pack(mmh3.hash(f"{view}:{feature}", signed=False))


def _value_class() -> Any:
    """Feast's `Value` message as far as it is read here; other types are unknown fields of it."""
    file = FileDescriptorProto(name="online_value.proto", package="throughline", syntax="proto3")
    message = file.message_type.add(name="Value")
    message.oneof_decl.add(name="val")
    for number, (name, kind) in enumerate(_TYPES.items(), 1):
        many = file.message_type.add(name=f"{name}_LIST")
        many.field.add(name="val", number=1, type=kind, label=FieldDescriptorProto.LABEL_REPEATED)
        message.field.add(name=name, number=number, type=kind, oneof_index=0)
        message.field.add(
            name=many.name,
            number=number + 10,
            type=FieldDescriptorProto.TYPE_MESSAGE,
            type_name=f".throughline.{many.name}",
            oneof_index=0,
        )
    pool = DescriptorPool()  # ty: ignore[possibly-missing-implicit-call]  # it is implemented in C
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("throughline.Value"))


_Value = _value_class()


# The bytes that stand for a value of a scalar type are its field number and wire type, then: eight bytes, four bytes,
# a varint, or a length and text. Read here for a fifth of the time that the general parser takes.
_TAGS = {name: number << 3 | wire for number, (name, wire) in enumerate(
    {"BYTES": 2, "STRING": 2, "INT32": 0, "INT64": 0, "DOUBLE": 1, "FLOAT": 5, "BOOL": 0}.items(), 1
)}  # fmt: skip
_DOUBLE_TAG, _FLOAT_TAG, _STRING_TAG = _TAGS["DOUBLE"], _TAGS["FLOAT"], _TAGS["STRING"]
_DOUBLE, _FLOAT = struct.Struct("<xd"), struct.Struct("<xf")


def _decode(content: bytes) -> Any:
    """A value; None where there is none. Raises `DecodeError` for other bytes."""
    size = len(content)
    if size == 9 and content[0] == _DOUBLE_TAG:
        return _DOUBLE.unpack(content)[0]
    if size == 5 and content[0] == _FLOAT_TAG:
        return _FLOAT.unpack(content)[0]
    if 2 <= size < 130 and content[0] == _STRING_TAG and content[1] == size - 2:
        return content[2:].decode()
    value = _Value.FromString(content)
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    held = getattr(value, kind)
    return list(held.val) if kind.endswith("_LIST") else held
