"""Feast's SQLite and Redis online stores that keep the newest row of each entity, whatever the order of writes.

A row replaces another of its entity in one step when its rank (event time, creation) is not lower; no creation ranks
lowest. Feast's SQLite store lets an older row overwrite a newer one; its Redis store drops corrections of the row that
it holds, and compares and writes in two steps.

Owns: that rule, replacing a view whole, notes that are kept and lost with the data. Does not own: what is written when
(`windows.py`, `push.py`). The formats are Feast's plus the rank, so Feast's own readers work.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import struct
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.infra.online_stores.helpers import (
    _redis_key_prefix,
    compute_table_id,
    extract_text_and_num,
    get_online_store_from_config,
)
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import make_tzaware, to_naive_utc
from google.protobuf.timestamp_pb2 import Timestamp  # ty: ignore[missing-module-member]  # built at run time
from pydantic import SecretStr
from redis import Redis

from throughline.featurestore.online_format import connect_redis, decode_rank, encode_rank, feature_field
from throughline.foundation.errors import ThroughlineError

# entity, features, event time, creation (times without a zone are UTC)
Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Read = tuple[datetime | None, dict[str, Value] | None]
RedisKey = Any  # bytes, which redis takes but does not name in its annotations

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class NewestOnlineStore(OnlineStore):
    """What both stores have beyond Feast's interface."""

    @abstractmethod
    def replace(self, config: RepoConfig, table: FeatureView, data: Sequence[Row]) -> None:
        """Make these the view's only rows; a reader sees each entity's old row or its new one."""

    @abstractmethod
    def entity_keys(self, config: RepoConfig, table: FeatureView) -> list[EntityKey]:
        """The entities for which the view holds a row, in no particular order."""

    @abstractmethod
    def note(self, config: RepoConfig, name: str) -> str | None:
        """A text kept beside the data of this project, and lost with it."""

    @abstractmethod
    def put_note(self, config: RepoConfig, name: str, text: str | None) -> None:
        """Keep a text; None removes it."""


def online_store_of(config: RepoConfig) -> NewestOnlineStore:
    """The store that a configuration names. Raises when it is not one of this module's."""
    store = get_online_store_from_config(config.online_store)
    if not isinstance(store, NewestOnlineStore):
        raise ThroughlineError(
            f"Online store {type(store).__name__} does not keep the newest row: use one of {__name__}."
        )
    return store


def _rank(event: datetime, created: datetime | None) -> str:
    """The rank of a row as text of one length, in text order."""
    return encode_rank(make_tzaware(event)) + (encode_rank(make_tzaware(created)) if created else "0" * 20)


def _key(config: RepoConfig, entity: EntityKey) -> bytes:
    return serialize_entity_key(entity, entity_key_serialization_version=config.entity_key_serialization_version)


def _entity(config: RepoConfig, key: bytes) -> EntityKey:
    return deserialize_entity_key(key, entity_key_serialization_version=config.entity_key_serialization_version)


class NewestSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: Literal["throughline.featurestore.online_stores.NewestSqliteOnlineStore"] = (  # ty: ignore[incompatible-attribute-override]  # Feast finds the class by this name
        "throughline.featurestore.online_stores.NewestSqliteOnlineStore"
    )


class NewestSqliteOnlineStore(SqliteOnlineStore, NewestOnlineStore):
    """One file, read while it is written; a power failure may cost the last write, never the file."""

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        opened = self._conn is not None
        connection = super()._get_conn(config)
        if not opened:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def update(self, config: RepoConfig, tables_to_delete: Any, tables_to_keep: Any, *args: Any, **kwargs: Any) -> None:
        super().update(config, tables_to_delete, tables_to_keep, *args, **kwargs)
        connection = self._get_conn(config)
        for table in (_quoted(config, view) for view in tables_to_keep):
            if "rank" not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN rank TEXT")
        connection.execute("CREATE TABLE IF NOT EXISTS throughline_notes (name TEXT PRIMARY KEY, text TEXT)")
        connection.commit()

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Sequence[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        with self._get_conn(config) as connection:
            self._insert(connection, config, table, data)
        if progress:
            progress(len(data))

    def replace(self, config: RepoConfig, table: FeatureView, data: Sequence[Row]) -> None:
        with self._get_conn(config) as connection:
            connection.execute(f"DELETE FROM {_quoted(config, table)}")
            self._insert(connection, config, table, data)

    def _insert(
        self, connection: sqlite3.Connection, config: RepoConfig, table: FeatureView, data: Sequence[Row]
    ) -> None:
        columns = ("value", "value_text", "event_ts", "created_ts", "rank")
        connection.executemany(
            f"INSERT INTO {_quoted(config, table)} AS held (entity_key, feature_name, {', '.join(columns)}) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (entity_key, feature_name) "
            f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)} "
            "WHERE held.rank IS NULL OR excluded.rank >= held.rank",
            (
                (key, name, value.SerializeToString(), extract_text_and_num(value, False)[0], *times)
                for entity, values, event, created in data
                for key, times in [
                    (
                        _key(config, entity),
                        (to_naive_utc(event), created and to_naive_utc(created), _rank(event, created)),
                    )
                ]
                for name, value in values.items()
            ),
        )

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Read]:
        # Feast's own takes the event time through the machine's time zone, and to the second
        keys = [_key(config, entity) for entity in entity_keys]
        found: dict[bytes, tuple[datetime, dict[str, Value]]] = {}
        rows = self._get_conn(config).execute(
            f"SELECT entity_key, feature_name, value, rank FROM {_quoted(config, table)} "
            f"WHERE entity_key IN ({','.join('?' * len(keys))})",
            keys,
        )
        for key, name, value, rank in rows:
            if key not in found:
                found[key] = (decode_rank(rank), {})
            found[key][1][name] = Value.FromString(value)
        return [found.get(key, (None, None)) for key in keys]

    def entity_keys(self, config: RepoConfig, table: FeatureView) -> list[EntityKey]:
        rows = self._get_conn(config).execute(f"SELECT DISTINCT entity_key FROM {_quoted(config, table)}")
        return [_entity(config, key) for (key,) in rows]

    def note(self, config: RepoConfig, name: str) -> str | None:
        try:
            rows = self._get_conn(config).execute("SELECT text FROM throughline_notes WHERE name = ?", (name,))
        except sqlite3.OperationalError:  # nothing was registered yet, so there is no such table
            return None
        return next((text for (text,) in rows), None)

    def put_note(self, config: RepoConfig, name: str, text: str | None) -> None:
        with self._get_conn(config) as connection:
            if text is None:
                connection.execute("DELETE FROM throughline_notes WHERE name = ?", (name,))
            else:
                connection.execute("INSERT OR REPLACE INTO throughline_notes VALUES (?, ?)", (name, text))


def _quoted(config: RepoConfig, view: FeatureView) -> str:
    return '"' + compute_table_id(config.project, view).replace('"', '""') + '"'


class NewestRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    type: Literal["throughline.featurestore.online_stores.NewestRedisOnlineStore"] = (  # ty: ignore[incompatible-attribute-override]  # Feast finds the class by this name
        "throughline.featurestore.online_stores.NewestRedisOnlineStore"
    )
    url: SecretStr


_KEEP_NEWEST = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held and held > ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""


class NewestRedisOnlineStore(RedisOnlineStore, NewestOnlineStore):
    """One hash per entity and project. Only the number of the database separates two homes."""

    def _get_client(self, online_store_config: Any) -> Redis:
        if not isinstance(self._client, Redis):
            self._client = connect_redis(online_store_config.url.get_secret_value())
        return self._client

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Sequence[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        client = self._get_client(config.online_store)
        script = client.register_script(_KEEP_NEWEST)
        with client.pipeline(transaction=False) as pipe:
            for entity, values, event, created in data:
                fields = [part for field in _fields(table, values, event, created).items() for part in field]
                script(keys=[self._redis_key(config, entity)], args=fields, client=pipe)
            pipe.execute()
        if progress:
            progress(len(data))

    def replace(self, config: RepoConfig, table: FeatureView, data: Sequence[Row]) -> None:
        client = self._get_client(config.online_store)
        rows = {self._redis_key(config, row[0]): row for row in data}
        gone = [key for key in self._held(config, table) if key not in rows]
        with client.pipeline(transaction=False) as pipe:
            for key, (_, values, event, created) in rows.items():
                pipe.hset(key, mapping=_fields(table, values, event, created))
            for key in gone:
                pipe.hdel(key, *_fields(table, dict.fromkeys((f.name for f in table.features), Value()), _EPOCH, None))
            pipe.execute()

    def entity_keys(self, config: RepoConfig, table: FeatureView) -> list[EntityKey]:
        return list(self._held(config, table).values())

    def note(self, config: RepoConfig, name: str) -> str | None:
        text: Any = self._get_client(config.online_store).get(_note_key(config, name))
        return None if text is None else text.decode()

    def put_note(self, config: RepoConfig, name: str, text: str | None) -> None:
        client = self._get_client(config.online_store)
        if text is None:
            client.delete(_note_key(config, name))
        else:
            client.set(_note_key(config, name), text)

    def _redis_key(self, config: RepoConfig, entity: EntityKey) -> RedisKey:
        return _key(config, entity) + config.project.encode()

    def _held(self, config: RepoConfig, table: FeatureView) -> dict[RedisKey, EntityKey]:
        """Redis key -> entity, where the view has a row."""
        client = self._get_client(config.online_store)
        prefix, project = (_literal(part) for part in (_redis_key_prefix(table.join_keys), config.project.encode()))
        keys = list(client.scan_iter(prefix + b"*" + project, count=1000))
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hexists(key, _rank_field(table))
            there = [key for key, has in zip(keys, pipe.execute(), strict=True) if has]
        found = {}
        for key in there:
            # the key of another project, whose name ends like this one's, does not parse
            with contextlib.suppress(ValueError, struct.error):
                found[key] = _entity(config, key.removesuffix(config.project.encode()))
        return found


def _fields(table: FeatureView, values: dict[str, Value], event: datetime, created: datetime | None) -> dict[Any, Any]:
    """A row as fields of its entity's hash; the rank comes first, where the script looks for it."""
    stamp = Timestamp()
    stamp.FromDatetime(make_tzaware(event))
    features = {feature_field(table.name, name): value.SerializeToString() for name, value in values.items()}
    return {_rank_field(table): _rank(event, created), f"_ts:{table.name}": stamp.SerializeToString(), **features}


def _rank_field(table: FeatureView) -> str:
    return f"_rank:{table.name}"


def _note_key(config: RepoConfig, name: str) -> str:
    return f"throughline:{config.project}:{name}"


def _literal(part: bytes) -> bytes:
    """Escaped for a pattern of keys."""
    return re.sub(rb"[*?\[\]\\]", rb"\\\g<0>", part)
