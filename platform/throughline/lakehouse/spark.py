"""The Spark Connect endpoint: sessions, and the catalog that SQL sees.

Owns: sessions, and the registration of Delta tables by name. Does not own: starting the server (`services`).
"""

from __future__ import annotations

import socket
import threading
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, in_bucket
from throughline.lakehouse.delta import Location

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from pyspark.sql import SparkSession

DEFAULT_PORT = 15002
WATCH_INTERVAL_S = 2.0


def session(settings: Settings) -> AbstractContextManager[SparkSession]:
    """A session on the endpoint, closed on exit. Raises one line when nothing answers there."""
    return session_at(settings.spark_url)


@contextmanager
def session_at(url: str) -> Generator[SparkSession]:
    """`session` at an address, for callers without settings."""
    if not _listens(url):
        raise _unreachable(url)
    from grpc import RpcError  # these postpone pyspark (2 s)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    try:
        spark = SparkSession.builder.remote(url).create()
        spark.sql("SELECT 1").collect()
    except (RpcError, PySparkException) as error:
        raise _unreachable(url) from error
    try:
        yield spark
    finally:
        spark.stop()


def answers(settings: Settings) -> bool:
    """Whether something listens at the endpoint; a client itself would retry for ten minutes."""
    return _listens(settings.spark_url)


def unreachable(settings: Settings) -> ThroughlineError:
    return _unreachable(settings.spark_url)


def _listens(url: str) -> bool:
    address = urlsplit(url.partition(";")[0])
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or DEFAULT_PORT), timeout=2):
            return True
    except OSError:
        return False


def _unreachable(url: str) -> ThroughlineError:
    return ThroughlineError(f"No Spark Connect server answers at {url}: start it with `throughline up`.")


@contextmanager
def watched(settings: Settings, on_lost: Callable[[], None]) -> Generator[threading.Event]:
    """Call `on_lost` once if the endpoint stops listening meanwhile; the event is then set.

    For clients in other processes, such as dbt, which would retry for ten minutes.
    """
    done, lost = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_INTERVAL_S):
            if not answers(settings) and not answers(settings):
                lost.set()
                on_lost()
                return

    watcher = threading.Thread(target=watch, name="spark-endpoint-watch", daemon=True)
    watcher.start()
    try:
        yield lost
    finally:
        done.set()
        watcher.join()


def schema_name(usecase: str, layer: str) -> str:
    """The catalog schema of a layer: `usecase_layer`."""
    return f"{usecase}_{layer}"


def address(location: Location) -> str:
    """The address of a location as Spark takes it: s3a:// for a bucket."""
    return f"s3a{str(location).removeprefix('s3')}" if in_bucket(location) else str(location)


def register_tables(settings: Settings, usecase: str, layer: str, tables: Iterable[str]) -> None:
    """Register existing Delta tables of a layer in the catalog by name, unless they are."""
    with session(settings) as spark:
        spark.sql(f"CREATE SCHEMA IF NOT EXISTS {schema_name(usecase, layer)}")
        for table in tables:
            location = address(settings.table_path(usecase, layer, table))
            spark.sql(
                f"CREATE TABLE IF NOT EXISTS {schema_name(usecase, layer)}.{table} USING delta LOCATION '{location}'"
            )
