"""The contract of every benchmark: its arguments, its figures, its last line.

Owns: medians and their spread, ratios, the JSON object, exit codes. Does not own: what is measured, the page.
A ratio is above 1 where we are ahead. It is taken per round, in which we and the peer ran one after the other, and
the median of the rounds counts: what disturbs the machine then disturbs both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from throughline.foundation.errors import ThroughlineError

OURS = "throughline"


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, extremes and number of repetitions. Raises `StatisticsError` when there is none."""
    return {
        "median": _short(statistics.median(values)),
        "low": _short(min(values)),
        "high": _short(max(values)),
        "repetitions": len(values),
    }


def ratio(ours: Sequence[float], peer: Sequence[float], *, higher_is_better: bool) -> dict[str, float | int]:
    """How far we are ahead of the peer, with the rounds in the order in which they were measured."""
    if higher_is_better:
        return spread([a / b for a, b in zip(ours, peer, strict=True)])
    return spread([b / a for a, b in zip(ours, peer, strict=True)])


def result(
    name: str, quick: bool, setup: dict[str, Any], figures: dict[str, Any], ratios: dict[str, Any], unit: str
) -> dict[str, Any]:
    """The object a benchmark prints.

    figures: candidate -> figure -> number or `spread`; `failed` (a text) instead, where a peer gave no answer.
    ratios:  peer -> what `ratio` returned; `unit`: of which quantity.
    """
    return {
        "benchmark": name,
        "quick": quick,
        "setup": setup,
        "figures": figures,
        "ratio_of": unit,
        "ratio": {peer: value["median"] for peer, value in ratios.items()},
        "ratio_spread": {peer: [value["low"], value["high"]] for peer, value in ratios.items()},
        "load_average": round(os.getloadavg()[0], 1),
    }


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def run(parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], dict[str, Any]]) -> int:
    """A benchmark's `main`: 0 with its figures, 1 when it could not be measured."""
    parser.add_argument("--quick", action="store_true", help="less than 50 s: smaller, the nearest peers only")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    try:
        measured = measure(chosen)
    except ThroughlineError as error:
        progress(str(error))
        return 1
    print(json.dumps(measured) if chosen.json else "\n".join(table(measured)))  # noqa: T201
    return 0


def table(measured: dict[str, Any]) -> list[str]:
    """The figures as lines of a Markdown table, one row per candidate."""
    names = list(dict.fromkeys(name for figures in measured["figures"].values() for name in figures))
    lines = ["| | " + " | ".join([*names, "ratio"]) + " |", "|---" * (len(names) + 2) + "|"]
    for candidate, figures in measured["figures"].items():
        cells = [_cell(figures.get(name)) for name in names]
        if candidate in measured["ratio"]:
            low, high = measured["ratio_spread"][candidate]
            cells.append(f"**{measured['ratio'][candidate]:g}** ({low:g}–{high:g})")
        else:
            cells.append("")
        lines.append(f"| {candidate} | " + " | ".join(cells) + " |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:,g} ({value['low']:,g}–{value['high']:,g})"
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,}"


def _short(value: float) -> float:
    """Three digits that count; more would claim a precision that repetitions do not have."""
    return float(f"{value:.3g}") if abs(value) < 1000 else float(round(value))
