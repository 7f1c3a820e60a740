"""The service levels, and the verdict on what was measured. Pure.

Owns: which figures have a bound, and when one is missed. Does not own: the bounds (`scenarios.py`), the load.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Sample:
    """One request. Seconds since the start of the load; `latency_ms` counts from the instant it was due to the end of
    the answer, `late_ms` from then to its sending. `failure`: None for a whole answer with a prediction per row."""

    due: float
    rows: int
    latency_ms: float
    late_ms: float
    failure: str | None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latencies:
    """Upper bounds in milliseconds, inclusive."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Levels:
    """What a scenario has to keep: latencies by rows per request; every request answered and logged exactly once."""

    latencies: Mapping[int, Latencies]
    failed_share: float = 0.0
    logged_share: float = 1.0
    memory_mb_per_min: float | None = None


@dataclass(frozen=True)
class Figures:
    """Of the requests with the same number of rows. Times in milliseconds; those of failed requests count, too."""

    rows: int
    requests: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    late_p99_ms: float


@dataclass(frozen=True)
class Measured:
    """A scenario's run. `logged_share`: of the prediction ids in the answers, those once in the inference log;
    `problems`: whatever else was not as the scenario demands."""

    requests: int
    seconds: float
    failed_share: float
    logged_share: float
    figures: Sequence[Figures]
    failures: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[str] = ()
    memory_mb_per_min: float | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds if self.seconds else 0.0


def figures(samples: Sequence[Sample]) -> list[Figures]:
    """One per number of rows, ascending."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.rows].append(sample)
    return [
        Figures(
            rows,
            len(group),
            *(percentile([one.latency_ms for one in group], share) for share in (50, 95, 99)),
            late_p99_ms=percentile([one.late_ms for one in group], 99),
        )
        for rows, group in sorted(groups.items())
    ]


def missed(levels: Levels, measured: Measured) -> list[str]:
    """The levels that were not kept, each with figure and bound; a run without requests keeps none."""
    if measured.requests == 0:
        return ["no request was answered"]
    found = list(measured.problems)
    if not measured.failed_share <= levels.failed_share:
        found.append(f"failed_share {measured.failed_share:g} > {levels.failed_share:g}")
    if not measured.logged_share >= levels.logged_share:
        found.append(f"logged_share {measured.logged_share:g} < {levels.logged_share:g}")
    if levels.memory_mb_per_min is not None:
        slope = math.nan if measured.memory_mb_per_min is None else measured.memory_mb_per_min
        if not slope <= levels.memory_mb_per_min:
            found.append(f"memory_mb_per_min {slope:g} > {levels.memory_mb_per_min:g}")
    of_rows = {one.rows: asdict(one) for one in measured.figures}
    for rows, bounds in levels.latencies.items():
        for name, bound in asdict(bounds).items():
            got = of_rows.get(rows, {}).get(name, math.nan)
            if not got <= bound:
                found.append(f"{name} {got:.3g} > {bound:g}" + (f" at {rows} rows" if rows > 1 else ""))
    return found


def percentile(values: Sequence[float], share: int) -> float:
    """`share` in whole percent, interpolated; NaN of nothing."""
    if len(values) < 2:
        return values[0] if values else math.nan
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def slope_per_minute(points: Sequence[tuple[float, float]]) -> float:
    """Of (seconds, value), by least squares; NaN with fewer than 3 points or no time between them."""
    if len(points) < 3 or points[0][0] == points[-1][0]:
        return math.nan
    return statistics.linear_regression(*zip(*points, strict=True)).slope * 60
