"""Tracing logged predictions back to raw rows, in a home that has served: how many are whole, and how long it takes.

Owns: which predictions, the clock, reading the reported raw rows again. Does not own: a trace (`throughline.lineage`).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import report
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import read
from throughline.lineage.trace import Trace, Tracer
from throughline.usecase import get_usecase, load_usecases

ABOUT = """
Random logged predictions of a home are traced in one process, after as many others that warm it. A trace is complete
when no step of it is missing. Every raw row that is reported is then read again from its table, whole and at the
version that the trace names; one that is not there as reported counts as wrong. There is no peer: `allowed` is the
200 ms that nine of ten traces and half of the tenth may take.
"""
ALLOWED_MS = 200
SEED = 2013


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    settings = load_settings(**({"home": chosen.home} if chosen.home else {}))
    usecase = get_usecase(chosen.usecase or next(iter(load_usecases())))
    began = time.perf_counter()
    tracer = Tracer(settings, usecase)
    if tracer.log.table is None:
        raise ThroughlineError(f"trace: {settings.home} has logged no prediction: point --home at one that has.")
    opened = time.perf_counter() - began
    logged = read(settings, tracer.log.table).select("id").collect()["id"].to_list()
    drawn = random.Random(SEED)
    count = min(chosen.traces or (100 if chosen.quick else 1000), len(logged))
    report.progress(f"warming with {count} of {tracer.log.described}")
    first = timed(tracer, drawn.sample(logged, count))[0]
    seconds, traces = [], []
    for took, found in timed_all(tracer, drawn.sample(logged, count)):
        seconds.append(took * 1000)
        traces.append(found)
    for gap, times in Counter(gap for found in traces for gap in found.gaps).most_common(5):
        report.progress(f"{times} times missing: {gap}")
    checked, wrong = read_again(settings, traces)
    p95 = statistics.quantiles(seconds, n=20)[-1]
    figures = {
        report.OURS: {
            "p50_ms": round(statistics.median(seconds), 1),
            "p95_ms": round(p95, 1),
            "max_ms": round(max(seconds), 1),
            "traces": count,
            "complete": sum(not found.gaps for found in traces),
            "raw_rows_read_again": checked,
            "raw_rows_wrong": wrong,
        }
    }
    setup = {
        "predictions": len(logged),
        "open_s": round(opened, 2),
        "first_trace_s": round(first, 2),
        "steps_per_trace": round(statistics.mean(len(found.steps) for found in traces)),
    }
    ratios = {"allowed": report.ratio([p95], [ALLOWED_MS], higher_is_better=False)}
    return report.result("trace", chosen.quick, setup, figures, ratios, f"{ALLOWED_MS} ms to the 95th percentile")


def timed(tracer: Tracer, ids: Iterable[str]) -> list[float]:
    return [took for took, _ in timed_all(tracer, ids)]


def timed_all(tracer: Tracer, ids: Iterable[str]) -> list[tuple[float, Trace]]:
    """Seconds and trace of each."""
    done = []
    for prediction in ids:
        began = time.perf_counter()
        found = tracer.trace(prediction)
        done.append((time.perf_counter() - began, found))
    return done


def read_again(settings: Settings, traces: Iterable[Trace]) -> tuple[int, int]:
    """How many different raw rows were reported, and how many of them their table does not hold as reported."""
    reported: dict[tuple[str, ...], set[tuple[Any, ...]]] = defaultdict(set)
    for found in traces:
        for part in (part for step in found.of("feature_table") for part in step.facts.get("raw", ())):
            for row in part["rows"]:
                reported[part["table"], *row].add(tuple(row.values()))
    checked = wrong = 0
    for (table, *columns), rows in reported.items():
        held = read(settings, TableReference.parse(table)).select(columns).unique().collect()
        wanted = pl.DataFrame(list(rows), schema={name: held.schema[name] for name in columns}, orient="row")
        checked += wanted.height
        wrong += wanted.join(held, on=columns, how="anti", nulls_equal=True).height
    return checked, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.trace", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, help="the home to look at; default THROUGHLINE_HOME")
    parser.add_argument("--usecase", help="default: the first that is declared")
    parser.add_argument("--traces", type=int, help="default 1000, quick 100")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
