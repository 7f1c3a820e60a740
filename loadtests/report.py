"""The report of a load test: what `--json` prints, and one HTML file that needs nothing else. Pure.

Owns: the keys, what the page shows. Does not own: drawing (`charts.py`), verdicts (`levels.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from typing import Any

from loadtests.arrivals import peak
from loadtests.charts import chart
from loadtests.levels import Measured, Sample, missed, percentile
from loadtests.scenarios import Scenario

BUCKETS = 30


@dataclass(frozen=True)
class Result:
    """A scenario with what its run gave; `samples`, `memory` and `switched` as in `loadtests.run.Run`."""

    scenario: Scenario
    measured: Measured
    samples: Sequence[Sample]
    memory: Sequence[tuple[float, float]] = ()
    switched: Sequence[float] = ()

    @property
    def missed(self) -> list[str]:
        return missed(self.scenario.levels, self.measured)


def as_json(results: Sequence[Result], page: str) -> dict[str, Any]:
    """What `--json` prints:

    verdict    pass or fail
    report     the path of the page
    scenarios  one object each: name, requests, seconds, per_second, failed_share, logged_share, missed (texts), latency
               (one object per number of rows: rows, requests, p50_ms, p95_ms, p99_ms, late_p99_ms), failures (text ->
               count), memory_mb_per_min (null where it was not measured), facts (of what went on beside the load)
    """
    return {
        "verdict": "fail" if any(result.missed for result in results) else "pass",
        "report": page,
        "scenarios": [
            {
                "name": result.scenario.name,
                "requests": result.measured.requests,
                "seconds": round(result.measured.seconds, 3),
                "per_second": round(result.measured.per_second, 2),
                "failed_share": result.measured.failed_share,
                "logged_share": result.measured.logged_share,
                "latency": [
                    {name: round(value, 3) for name, value in asdict(one).items()} for one in result.measured.figures
                ],
                "failures": dict(result.measured.failures),
                "memory_mb_per_min": result.measured.memory_mb_per_min,
                "facts": dict(result.measured.facts),
                "missed": result.missed,
            }
            for result in results
        ],
    }


def verdict_line(results: Sequence[Result]) -> str:
    """`PASS` with the figures of the first scenario, or `FAIL` with every level that was missed."""
    failed = {result.scenario.name: result.missed for result in results if result.missed}
    if failed:
        missing = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in failed.items())
        return f"FAIL: {len(failed)} of {len(results)} scenarios missed a level: {missing}"
    first = results[0]
    figures = first.measured.figures[0]
    return (
        f"PASS: every level of {len(results)} scenarios kept; {first.scenario.name} at "
        f"{first.measured.per_second:.0f} requests/s: p50 {figures.p50_ms:.1f} ms, p95 {figures.p95_ms:.1f} ms, "
        f"p99 {figures.p99_ms:.1f} ms"
    )


def scenario_line(result: Result) -> str:
    """One scenario's figures, for the progress."""
    measured = result.measured
    latencies = "; ".join(
        (f"{one.rows} rows " if len(measured.figures) > 1 else "")
        + f"p50 {one.p50_ms:.1f} p95 {one.p95_ms:.1f} p99 {one.p99_ms:.1f} ms"
        for one in measured.figures
    )
    return (
        f"{'missed' if result.missed else 'kept'}: {measured.requests} requests, {measured.per_second:.0f}/s, "
        f"{latencies}, failed {measured.failed_share:.2%}, logged {measured.logged_share:.2%}"
        + ("" if measured.memory_mb_per_min is None else f", memory {measured.memory_mb_per_min:+.2f} MB per minute")
    )


def render(results: Sequence[Result], about: Mapping[str, str], at: datetime) -> str:
    """The page. `about`: facts of the endpoint and the machine, by name."""
    from jinja2 import Environment, StrictUndefined  # postpones jinja2 (0.1 s)
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"ms": _milliseconds, "share": _share, "count": "{:,}".format}
    template = resources.files("loadtests").joinpath("report.html.j2").read_text()
    drawn = [{name: Markup(svg) for name, svg in plots(result).items()} for result in results]
    return environment.from_string(template).render(
        results=results,
        drawn=drawn,
        about=about,
        at=at,
        verdict=verdict_line(results),
        failed=any(result.missed for result in results),
        peak=peak,
    )


def plots(result: Result) -> dict[str, str]:
    """Title -> chart: latency, rate with failures, and memory where it was measured."""
    scenario, seconds = result.scenario, result.scenario.seconds
    width = seconds / BUCKETS
    within: dict[int, list[Sample]] = defaultdict(list)
    ended: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    for sample in result.samples:
        within[int(sample.due / width)].append(sample)
        end = int((sample.due + sample.latency_ms / 1000) / width)
        ended[end] += 1
        failed[end] += sample.failure is not None
    middles = [(number + 0.5) * width for number in range(BUCKETS)]

    def rate(counts: Mapping[int, int]) -> list[tuple[float, float]]:
        return [(middle, counts.get(number, 0) / width) for number, middle in enumerate(middles)]

    latency: dict[str, list[tuple[float, float]]] = {}
    bounds: dict[str, float] = {}
    several = len(scenario.rows) > 1
    for rows in scenario.rows:
        for share in (99,) if several else (50, 95, 99):
            name = f"p{share}" + (f" of {rows} rows" if several else "")
            latency[name] = [
                (middle, percentile([one.latency_ms for one in within[number] if one.rows == rows], share))
                for number, middle in enumerate(middles)
            ]
            if rows in scenario.levels.latencies:
                bounds[name] = getattr(scenario.levels.latencies[rows], f"p{share}_ms")
    due = {number: len(samples) for number, samples in within.items()}
    drawn = {
        "Latency, from due to answered": chart(
            latency, seconds, "ms, dashed: the level", logarithmic=True, marks=result.switched, bounds=bounds
        ),
        "Requests": chart(
            {"due": rate(due), "answered": rate(ended), "failed": rate(failed)}, seconds, "per second",
            marks=result.switched,
        ),
    }  # fmt: skip
    if result.memory:
        drawn["Memory of the server"] = chart({"resident": list(result.memory)}, seconds, "MB")
    return drawn


def _milliseconds(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:,.1f}"


def _share(value: float) -> str:
    return f"{value:.2%}" if 0 < value < 1 else f"{value:.0%}"
