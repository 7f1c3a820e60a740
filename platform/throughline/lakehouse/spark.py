"""The Spark Connect endpoint: sessions, and the catalog that SQL sees.

Owns: sessions, and the registration of Delta tables by name. Does not own: starting the server (`services`).
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import DEFAULT_PORTS, Settings, in_bucket
from throughline.lakehouse.delta import Location

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from pyspark.sql import SparkSession

WATCH_INTERVAL_S = 2.0


@contextmanager
def session(url: str) -> Generator[SparkSession]:
    """A session on the endpoint, closed on exit. Raises one line when nothing listens there."""
    if not listens(url):
        raise unreachable(url)
    from grpc import RpcError  # these postpone pyspark (2 s)
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    try:
        spark = SparkSession.builder.remote(url).create()
        spark.sql("SELECT 1").collect()
    except (RpcError, PySparkException) as error:
        raise unreachable(url) from error
    try:
        yield spark
    finally:
        spark.stop()


def listens(url: str) -> bool:
    """Whether something listens at the endpoint; Spark's own client would retry for ten minutes."""
    address = urlsplit(url.partition(";")[0])
    try:
        port = address.port or DEFAULT_PORTS["spark"]
        with socket.create_connection((address.hostname or "127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def unreachable(url: str) -> ThroughlineError:
    return ThroughlineError(f"No Spark Connect server answers at {url}: start it with `throughline up`.")


@contextmanager
def watched(url: str, on_lost: Callable[[], None]) -> Generator[threading.Event]:
    """Call `on_lost` once if the endpoint stops listening meanwhile, and set the event: for clients in other processes,
    such as dbt's, which would retry for ten minutes."""
    done, lost = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_INTERVAL_S):
            if not listens(url) and not listens(url):
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
    with session(settings.spark_url) as spark:
        spark.sql(f"CREATE SCHEMA IF NOT EXISTS {schema_name(usecase, layer)}")
        for table in tables:
            location = address(settings.table_path(usecase, layer, table))
            spark.sql(
                f"CREATE TABLE IF NOT EXISTS {schema_name(usecase, layer)}.{table} USING delta LOCATION '{location}'"
            )
