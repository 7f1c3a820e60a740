"""The Spark Connect endpoint: attaching to it, and the catalog that SQL sees.

Owns: sessions and the registration of Delta tables by name. Does not own: starting the server (`services`).
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from throughline.errors import ThroughlineError
from throughline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyspark.sql import SparkSession

DEFAULT_PORT = 15002
WATCH_INTERVAL_S = 2.0


@contextmanager
def session(settings: Settings) -> Iterator[SparkSession]:
    """A session on the endpoint, closed on exit. Raises one line when nothing answers there."""
    if not answers(settings):
        raise unreachable(settings)
    from grpc import RpcError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    try:
        spark = SparkSession.builder.remote(settings.spark_url).create()
        spark.sql("SELECT 1").collect()
    except (RpcError, PySparkException) as error:
        raise unreachable(settings) from error
    try:
        yield spark
    finally:
        spark.stop()


def answers(settings: Settings) -> bool:
    """Whether something listens at the endpoint. Asked first, because a client tries for ten minutes to find out."""
    address = urlsplit(settings.spark_url.partition(";")[0])
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or DEFAULT_PORT), timeout=2):
            return True
    except OSError:
        return False


def unreachable(settings: Settings) -> ThroughlineError:
    return ThroughlineError(f"No Spark Connect server answers at {settings.spark_url}: start it with `throughline up`.")


@contextmanager
def watched(settings: Settings, on_lost: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `on_lost` once should the endpoint go away meanwhile; the event says whether it did.

    For clients in other processes, such as dbt, whose own retries would hide the loss for ten minutes.
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


def register_tables(settings: Settings, usecase: str, layer: str, tables: Iterable[str]) -> None:
    """Make existing Delta tables of a layer known to the catalog by name; a no-op for those already known."""
    with session(settings) as spark:
        spark.sql(f"CREATE SCHEMA IF NOT EXISTS {schema_name(usecase, layer)}")
        for table in tables:
            location = settings.table_path(usecase, layer, table)
            spark.sql(
                f"CREATE TABLE IF NOT EXISTS {schema_name(usecase, layer)}.{table} USING delta LOCATION '{location}'"
            )
