"""The Spark Connect endpoint: attaching to it, and the catalog that SQL sees.

Owns: sessions and the registration of Delta tables by name. Does not own: starting the server (`services`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from throughline.errors import ThroughlineError
from throughline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyspark.sql import SparkSession


@contextmanager
def session(settings: Settings) -> Iterator[SparkSession]:
    """A session on the endpoint, closed on exit. Raises one line when nothing answers there."""
    from grpc import RpcError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    try:
        spark = SparkSession.builder.remote(settings.spark_url).create()
        spark.sql("SELECT 1").collect()
    except (RpcError, PySparkException) as error:
        raise ThroughlineError(
            f"No Spark Connect server answers at {settings.spark_url}: start it with `throughline up`."
        ) from error
    try:
        yield spark
    finally:
        spark.stop()


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
