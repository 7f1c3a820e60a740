"""`python -m loadtests [--users N] [--seconds S] [--json]`: exit code 1 when a service level is missed."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from loadtests.levels import Levels, report
from loadtests.scenario import drive, require_loopback, served
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import load_settings
from throughline.usecase import get_usecase


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="loadtests", description="Load on the local endpoint against service levels.")
    parser.add_argument("--users", type=int, default=8, help="callers at once, 10 requests per second each")
    parser.add_argument("--seconds", type=float, default=15, help="how long (at most 600)")
    parser.add_argument("--usecase", help="default: the first that is served")
    parser.add_argument("--url", help="default: the model server of this home")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.users <= 200 or not 1 <= chosen.seconds <= 600:
        parser.error("--users must be 1 to 200, --seconds 1 to 600")
    try:
        settings = load_settings()
        url = (chosen.url or settings.url("model_http")).rstrip("/")
        require_loopback(url)
        names = served(settings, url)
        usecase = get_usecase(chosen.usecase or names[0])
        if usecase.name not in names:
            raise ThroughlineError(f"{url} does not serve {usecase.name}, only {', '.join(names)}.")
        levels = Levels()
        result = report(levels, drive(settings, usecase, url, chosen.users, chosen.seconds))
    except ThroughlineError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(result) if chosen.json else _table(result, asdict(levels)))  # noqa: T201
    return 1 if result["missed"] else 0


def _table(result: dict, levels: dict[str, float]) -> str:
    lines = [f"{result['requests']} requests in {result['seconds']:.1f} s, {result['per_second']:.0f} per second"]
    for name in ("failed_share", "p50_ms", "p95_ms", "p99_ms", "events_lost"):
        bound = f"at most {levels[name]:g}" if name in levels else ""
        lines.append(f"  {name:<14}{result[name]:>10g}  {bound}")
    lines.append("missed: " + "; ".join(result["missed"]) if result["missed"] else "every level kept")
    return "\n".join(lines)
