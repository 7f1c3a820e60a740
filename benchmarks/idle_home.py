"""What a home in which nothing happens costs: CPU seconds a minute and memory of each service.

    python -m benchmarks.idle_home [--home HOME] [--minutes 10] [--quick] [--json]

Owns: counting the processes of a home by service. Does not own: starting them (`throughline up`), and has no peer.
Memory is the proportional set size: pages that processes share count once in the sum.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.report import progress, result
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.services.daemon import Supervisor
from throughline.services.processes import of_home

Usage = Mapping[str, tuple[float, float]]  # service -> (CPU seconds so far, MB)


def usage(processes: list[psutil.Process]) -> Usage:
    """Per service, children that ended included."""
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for process in processes:
        try:
            name = process.environ().get("SUPERVISOR_PROCESS_NAME", "supervisord")
            times, memory = process.cpu_times(), process.memory_full_info().pss / 1e6
        except psutil.Error:
            continue
        seconds, megabytes = found[name]
        found[name] = (seconds + sum(times[:4]), megabytes + memory)  # user, system, and those of ended children
    return found


def per_minute(before: Usage, after: Usage, minutes: float) -> dict[str, dict[str, float]]:
    """Service -> CPU seconds a minute between the two, and the memory at the end."""
    return {
        name: {"cpu_s_per_min": round((seconds - before[name][0]) / minutes, 2), "mb": round(megabytes)}
        for name, (seconds, megabytes) in sorted(after.items())
        if name in before
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.idle_home", description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="default: that of the settings")
    parser.add_argument("--minutes", type=float, help="default 10, quick 0.5")
    parser.add_argument("--quick", action="store_true", help="less than 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    settings = load_settings(home=chosen.home) if chosen.home else load_settings()
    url = Supervisor(settings).url
    before = usage(of_home(url))
    if not before:
        raise ThroughlineError(f"Nothing runs in {settings.home}: start its services with `throughline up`.")
    minutes = chosen.minutes or (0.5 if chosen.quick else 10)
    progress(f"counting for {minutes:g} minutes")
    time.sleep(minutes * 60)
    services = per_minute(before, usage(of_home(url)), minutes)
    total = {key: round(sum(one[key] for one in services.values()), 2) for key in ("cpu_s_per_min", "mb")}
    for name, one in {**services, "all": total}.items():
        progress(f"{name:20} {one['cpu_s_per_min']:6.2f} CPU s a minute {one['mb']:6.0f} MB")
    if chosen.json:
        print(json.dumps(result("idle_home", chosen.quick, {"minutes": minutes}, {**services, "all": total}, {}, "")))  # noqa: T201


if __name__ == "__main__":
    main()
