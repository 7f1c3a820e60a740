"""On a local disk Spark and delta-rs write the same table at once: the loser gets an error, no row is lost."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path

import polars as pl

from throughline.foundation.settings import Settings
from throughline.lakehouse import spark
from throughline.lakehouse.delta import TableConflict
from throughline.lakehouse.table import current_version, replace_days, scan

SPARKS, OURS, SHARED = (date(2013, 1, day) for day in (1, 2, 3))


def rows(day: date, value: int) -> pl.DataFrame:
    return pl.DataFrame({"day": [day] * 3, "id": [0, 1, 2], "value": [value] * 3})


def test_every_acknowledged_write_of_two_engines_is_in_the_table(spark_server: Settings, tmp_path: Path) -> None:
    path = tmp_path / "t"
    replace_days(path, pl.concat([rows(day, 0) for day in (SPARKS, OURS, SHARED)]), SPARKS, SHARED)
    by_spark: list[int] = []
    last: dict[date, tuple[int, int]] = {}  # day -> version that was acknowledged last, value
    spark_errors: list[str] = []
    failures: list[BaseException] = []

    def write_by_spark() -> None:
        from pyspark.errors import PySparkException

        try:
            with spark.session(spark_server.spark_url) as session:
                for value in range(1, 3):
                    for day in (SPARKS, SHARED):
                        three = ", ".join(f"(date'{day}', {n}L, {value}L)" for n in range(3))
                        try:
                            session.sql(f"INSERT INTO delta.`{path}` REPLACE WHERE day = date'{day}' VALUES {three}")
                        except PySparkException as error:
                            spark_errors.append(str(error))
                        else:
                            by_spark.append(value)
                            if day == SPARKS:
                                last[SPARKS] = (0, value)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write_by_spark)
    thread.start()
    ours, value = 0, 100
    while thread.is_alive():
        value += 1
        last[OURS] = (replace_days(path, rows(OURS, value), OURS, OURS), value)
        ours += 1
        try:
            replace_days(path, rows(SHARED, value), SHARED, SHARED)
            ours += 1
        except TableConflict:
            pass
        thread.join(0.5)
    assert failures == []
    assert by_spark
    assert all("CONCURRENT" in error.upper() for error in spark_errors)
    assert current_version(path) == ours + len(by_spark)  # each acknowledged write is a version, and no other is
    held = scan(path, current_version(path)).collect()
    assert held.height == 9
    for day in (SPARKS, OURS):
        assert held.filter(pl.col("day") == day)["value"].unique().to_list() == [last[day][1]]
    assert held.filter(pl.col("day") == SHARED)["value"].n_unique() == 1
