"""Rows of a database, read through Spark Connect: only the Spark server has the driver and the credentials.

Owns: the statements that read a window. Does not own: the server (`services`), types (`conform.py`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse import spark
from throughline.sources.conform import as_declared
from throughline.sources.source import known_in
from throughline.usecase import UseCase
from throughline.usecase.feeds import JdbcFeed

# The database is queried for a window this much wider, whatever the time zone of its timestamps; `read` cuts it.
MARGIN = timedelta(days=1)
FETCH = 10_000  # rows a round trip; PostgreSQL's driver would otherwise hold all of them at once
_VIEW = "throughline_source"


class JdbcSource:
    """A table or query of a database."""

    def __init__(self, settings: Settings, usecase: UseCase, table: str, feed: JdbcFeed) -> None:
        self.name = f"{feed.table or 'the query'} in {feed.jdbc.partition('?')[0]}"
        self._settings, self._feed, self._expects = settings, feed, usecase.sources.tables[table].expects

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        """Rows in the order of knowledge time, then of their content."""
        from pyspark.errors import PySparkException  # postpones pyspark (2 s)

        feed = self._feed
        with spark.session(self._settings.spark_url) as session:
            try:
                session.conf.set("spark.sql.session.timeZone", "UTC")
                if package := feed.driver_and_package[1]:
                    # in each session: the JAR of another session is found by CREATE VIEW, but not by SELECT
                    session.sql(f"ADD JAR 'ivy://{package}?transitive=false'")
                session.sql(_view(feed))
                declared = self._expects and {*self._expects.columns, feed.event_time, feed.available_at}
                wanted = [name for name in session.table(_VIEW).columns if declared is None or name in declared]
                rows = pl.from_arrow(session.sql(_window(feed, wanted, start, end)).toArrow())
            except PySparkException as error:
                raise self._refused(error) from error
        assert isinstance(rows, pl.DataFrame)
        rows = as_declared(rows, feed, self._expects, self.name).filter(known_in(start, end))
        plain = sorted(name for name, kind in rows.schema.items() if not kind.is_nested())
        return rows.sort("available_at", *plain, maintain_order=True)

    def _refused(self, error: Exception) -> ThroughlineError:
        text = str(error)
        causes = re.findall(r"^Caused by: [\w.$]+: (.*)", text, re.MULTILINE)
        line = re.sub(r"\s+", " ", causes[-1] if causes else text.partition("\n\n")[0])[:200]
        remedy = "correct `from`, or the driver and the credentials on the Spark server"
        return ThroughlineError(f"{self.name} cannot be read ({line}): {remedy}.")


def _view(feed: JdbcFeed) -> str:
    """SQL that creates a view of the source; the Spark server replaces `${env:NAME}` from its own environment."""
    options = {
        "url": feed.jdbc,
        "driver": feed.driver_and_package[0] or "",
        "fetchsize": str(FETCH),
        "preferTimestampNTZ": "true",  # a timestamp without a zone stays one, whatever the zone of the server
        "dbtable": feed.table or f"({feed.query}) q",
    }
    if feed.credentials:
        options |= {"user": f"${{env:{feed.credentials}_USER}}", "password": f"${{env:{feed.credentials}_PASSWORD}}"}
    given = ", ".join(f"{name} {_text(value)}" for name, value in options.items())
    return f"CREATE OR REPLACE TEMPORARY VIEW {_VIEW} USING jdbc OPTIONS ({given})"


def _window(feed: JdbcFeed, columns: list[str], start: datetime | None, end: datetime) -> str:
    known = _name(feed.available_at)
    where = f"{known} < {_stamp(end + MARGIN)}" + (f" AND {known} >= {_stamp(start - MARGIN)}" if start else "")
    return f"SELECT {', '.join(map(_name, columns))} FROM {_VIEW} WHERE {known} IS NULL OR ({where})"


def _stamp(instant: datetime) -> str:
    return f"TIMESTAMP_NTZ '{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}'"


def _name(column: str) -> str:
    return "`" + column.replace("`", "``") + "`"


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
