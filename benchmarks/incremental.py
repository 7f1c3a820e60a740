"""A day's features against all days of a quarter: what building only what changed is worth.

    python -m benchmarks.incremental [--quick] [--json] [--scale N]

Both are the same dbt build on the same warm Spark server; a rebuild replaces every day, an increment the newest one.
`seconds` is the whole dbt process; `statements_s` what its models took in Spark, which is what grows with the data.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from benchmarks.report import OURS, progress, ratio, result, run, spread
from throughline import services
from throughline.featurestore import dbt
from throughline.featurestore.incremental import Build, dbt_variables, plan_builds, source_versions
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.ingestion.ingest import read_days
from throughline.lakehouse.spark import register_tables
from throughline.lakehouse.table import replace_all, replace_days
from throughline.services.ports import take_ports
from throughline.sources.declared import source_of
from throughline.usecase import UseCase, load_usecases

ABOUT = "Building one day of features against building all days of a quarter, by the same dbt models on Spark."
DAY = timedelta(days=1)
FIRST, NEWEST = date(2013, 1, 1), date(2013, 3, 31)


def bring(settings: Settings, usecase: UseCase, first: date, last: date, scale: int) -> None:
    """The raw days, `scale` times over with other entities each time."""
    for name, table in usecase.sources.tables.items():
        path = settings.table_path(usecase.name, "raw", name)
        if table.static:
            source = source_of(settings, usecase, name)
            replace_all(path, _copies(source.read(None, usecase.day_start(last + DAY)), scale))
        else:
            replace_days(path, _copies(read_days(settings, usecase, name, first, last, FIRST), scale), first, last)


def _copies(rows: pl.DataFrame, scale: int) -> pl.DataFrame:
    # other names: other entities, not more rows of one
    copies = [rows.with_columns(cs.string() + ("" if n == 0 else f"~{n}")) for n in range(scale)]
    return pl.concat(copies).with_columns(pl.lit("benchmark").alias("ingestion_run_id"))


def build(settings: Settings, usecase: UseCase, until: date, whole: bool) -> dict[str, float]:
    """One dbt build up to the end of a day; returns its seconds."""
    manifest = dbt.manifest(settings)
    started = time.monotonic()
    pins = source_versions(settings, usecase)
    if pins is None:
        raise ThroughlineError("The raw tables are not there: bring them first.")
    builds = plan_builds(settings, usecase, manifest, pins, usecase.day_start(until + DAY))
    if whole:
        builds = {name: Build(True, [(FIRST, until)], one.origin) for name, one in builds.items()}
    elif any(one.ranges != [(until, until)] for one in builds.values()):
        raise ThroughlineError(f"Not {until} alone would be built: {builds}")
    target = settings.home / "dbt"
    done = dbt.invoke("build", variables=dbt_variables(settings, usecase, pins, builds), target=target)
    seconds = time.monotonic() - started
    if done.returncode:
        raise ThroughlineError(f"dbt failed: {' '.join(done.stdout.split()[-60:])}")
    results = json.loads((target / "run_results.json").read_text())["results"]
    models = [one["execution_time"] for one in results if one["unique_id"].startswith("model.")]
    return {"seconds": seconds, "statements_s": sum(models)}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    usecase = next(iter(load_usecases().values()))
    rounds = 1 if chosen.quick else 3
    with tempfile.TemporaryDirectory(prefix="tl-") as folder:
        settings = load_settings(home=Path(folder), port_base=take_ports(), data_from=FIRST)
        try:
            progress("starting Spark")
            services.up(settings, ["spark"])
            newest = NEWEST - rounds * DAY
            bring(settings, usecase, FIRST, newest, chosen.scale)
            register_tables(settings, usecase.name, "raw", usecase.sources.tables)
            progress("the first build, which is not measured")
            build(settings, usecase, newest, whole=True)
            days: list[dict[str, float]] = []
            rebuilds: list[dict[str, float]] = []
            for n in range(rounds):
                day = newest + (n + 1) * DAY
                bring(settings, usecase, day, day, chosen.scale)
                days.append(build(settings, usecase, day, whole=False))
                rebuilds.append(build(settings, usecase, day, whole=True))
                progress(f"{day}: {days[-1]} against {rebuilds[-1]}")
        finally:
            services.down(settings)
    figures = {
        name: {figure: spread([one[figure] for one in measured]) for figure in ("seconds", "statements_s")}
        for name, measured in ((OURS, days), ("full_rebuild", rebuilds))
    }
    ratios = {
        peer: ratio([one[figure] for one in days], [one[figure] for one in rebuilds], higher_is_better=False)
        for peer, figure in (("full_rebuild", "seconds"), ("full_rebuild_statements", "statements_s"))
    }
    setup = {"days": (NEWEST - FIRST).days + 1, "scale": chosen.scale, "models": 6}
    return result("incremental", chosen.quick, setup, figures, ratios, "time of a rebuild of all days / of one day")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.incremental", description=ABOUT)
    parser.add_argument("--scale", type=int, default=1, help="the data this many times over, with other entities")
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
