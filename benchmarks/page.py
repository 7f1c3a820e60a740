"""`docs/benchmarks.md`: what the benchmarks measured, on which machine, when.

Owns: the page. Does not own: the figures. It names neither the machine nor a path of it.
"""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.report import table

_PACKAGES = ("feast", "polars", "duckdb", "dask", "deltalake", "kserve", "onnxruntime")


def machine_facts() -> dict[str, str]:
    """What a reader needs to compare with another machine."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "processor": cpu[1].strip() if cpu else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(total[1]) / 2**20:.0f} GiB" if total else "unknown",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def page(results: list[dict[str, Any]], abouts: dict[str, str], facts: dict[str, str], now: datetime) -> str:
    """The whole page as Markdown. `abouts`: benchmark -> what it measures."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. Figures are medians of repetitions with (lowest–highest). A ratio above",
        "1 means that we are ahead of that peer; it is taken round by round, in which all ran in turn on this machine.",
        "",
        f"Measured on {now.astimezone(UTC):%Y-%m-%d}.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
    ]
    for measured in results:
        name = measured["benchmark"]
        lines += ["", f"## {name}", "", abouts[name].strip(), ""]
        lines += ["Setup: " + ", ".join(f"{key} {value}" for key, value in measured["setup"].items()) + "."]
        command = f"python -m benchmarks.{name}{' --quick' if measured['quick'] else ''}"
        busy = f"The machine's load average was {measured['load_average']:g} at the end"
        lines += [f"Again: `{command}`. Ratio of {measured['ratio_of']}. {busy}.", "", *table(measured)]
    return "\n".join(lines) + "\n"
