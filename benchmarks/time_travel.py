"""Reading an old version of a table against reading its newest, which has as many rows.

Owns: the table and the rounds. Does not own: how a table is written and read (`throughline.lakehouse`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable

from benchmarks import report
from throughline import services
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.lakehouse.spark import session
from throughline.lakehouse.table import DAY, replace_days, scan
from throughline.services.ports import take_ports

ABOUT = """
A table partitioned by day, of which then one day after the other is replaced: each of its versions has the same number
of rows. All rows of the version halfway and of the newest are read in turn; the ratio is the newest's time to the old
one's, so 1 means that time travel costs nothing. `throughline` is the platform's pinned read, which first sees that no
file of that version was removed; `polars` is Polars' own reader, and `spark` a sum over all columns in SQL. With and
without a checkpoint of the log every ten versions.
"""
FIRST = date(2024, 1, 1)
COLUMNS = [f"f{i}" for i in range(6)]
CHECKPOINT_EVERY = 10
Read = Callable[[Path, int], int]


def make_table(path: Path, commits: int, day_rows: int, checkpoints: bool) -> None:
    """Versions 0 to `commits`, all of `commits` days."""
    days = [FIRST + timedelta(days=n) for n in range(commits)]
    replace_days(path, pl.concat(made(day, day_rows, 0) for day in days), days[0], days[-1])
    for number, day in enumerate(days, start=1):
        version = replace_days(path, made(day, day_rows, number), day, day)
        if version != number:
            raise ThroughlineError(f"time_travel: commit {number} made version {version}: the figures would mislead.")
        if checkpoints and number % CHECKPOINT_EVERY == 0:
            DeltaTable(str(path)).create_checkpoint()


def made(day: date, rows: int, seed: int) -> pl.DataFrame:
    random = np.random.default_rng([day.toordinal(), seed])
    return pl.DataFrame({name: random.normal(size=rows) for name in COLUMNS}).with_columns(pl.lit(day).alias(DAY))


@contextlib.contextmanager
def spark_reader(home: Path) -> Iterator[Read]:
    """Spark SQL over an endpoint that is started for this."""
    settings = load_settings(home=home / "home", port_base=take_ports(), spark_memory="1g")
    try:
        services.up(settings, ["spark"])
        with session(settings.spark_url) as spark:
            sums = ", ".join(f"sum({name})" for name in COLUMNS)

            def read(path: Path, version: int) -> int:
                rows = spark.sql(f"SELECT count(*), {sums} FROM delta.`{path}` VERSION AS OF {version}").collect()
                return rows[0][0]

            yield read
    finally:
        services.down(settings)


def compare(name: str, read: Read, path: Path, versions: tuple[int, int], rows: int, rounds: int) -> list[list[float]]:
    """Seconds per round for each of the versions, read in turn after one warm read of each."""
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for taken, version in zip(seconds, versions, strict=True):
            start = time.perf_counter()
            found = read(path, version)
            if number:
                taken.append(time.perf_counter() - start)
            if found != rows:
                raise ThroughlineError(f"time_travel: {name} found {found} of {rows} rows in version {version}.")
    old, newest = (report.spread(taken)["median"] for taken in seconds)
    report.progress(f"{name}: old {old:g} s, newest {newest:g} s")
    return seconds


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    day_rows = chosen.day_rows or (5_000 if chosen.quick else 40_000)
    versions = (chosen.commits // 2, chosen.commits)
    rows = day_rows * chosen.commits
    figures, ratios = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-") as made_in, contextlib.ExitStack() as held:
        folder = Path(made_in)
        readers: dict[str, Read] = {
            report.OURS: lambda path, version: scan(path, version).collect().height,
            "polars": lambda path, version: pl.scan_delta(str(path), version=version).collect().height,
        }
        if not chosen.quick:
            readers["spark"] = held.enter_context(spark_reader(folder))
        for log, checkpoints in (("checkpoints", True), ("no checkpoint", False)):
            path = folder / log.replace(" ", "_")
            report.progress(f"{log}: {chosen.commits} days of {day_rows} rows, each replaced once")
            make_table(path, chosen.commits, day_rows, checkpoints)
            for reader, read in readers.items():
                name = f"{reader}, {log}"
                old, newest = compare(name, read, path, versions, rows, chosen.rounds)
                figures[name] = {"old_s": report.spread(old), "newest_s": report.spread(newest), "rows": rows}
                ratios[name] = report.ratio(old, newest, higher_is_better=False)
    setup = {"commits": chosen.commits, "rows": rows, "old_version": versions[0], "newest_version": versions[1]}
    return report.result("time_travel", chosen.quick, setup, figures, ratios, "the newest version's time to the old's")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.time_travel", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=50, help="days, and daily commits after the first")
    parser.add_argument("--day-rows", type=int, help="rows per day; default 40000, quick 5000")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of every read, in turn")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
