"""`python -m loadtests [--scenario NAME ...]`: exit code 1 when a level is missed or nothing can be measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadtests.levels import Sample
from loadtests.report import Result, as_json, render, scenario_line, verdict_line
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.target import require_loopback, served, target
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.files import write_atomic
from throughline.foundation.settings import Settings, load_settings
from throughline.usecase import get_usecase

KEPT = 20  # reports
PROGRESS_EVERY_S = 10.0
SHORT = [scenario.name for scenario in SCENARIOS.values() if scenario.short]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="loadtests",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Load on the endpoint of this machine, held against service levels.",
        epilog="\n".join(f"{one.name:<12} {one.seconds:3.0f} s  {one.about}" for one in SCENARIOS.values()),
    )
    parser.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), metavar="NAME",
        help=f"one of those below, may be repeated (default: {', '.join(SHORT)})",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, help="peak rate in requests per second, instead of the scenario's")
    parser.add_argument("--seconds", type=float, help="length of each scenario, instead of its own (at most 3600)")
    parser.add_argument("--clients", type=int, help="connections, and so requests under way at most (1 to 500)")
    parser.add_argument("--switch", metavar="COMMAND", help="what a switch runs; default: load the revision again")
    parser.add_argument("--usecase", help="default: the first that is served")
    parser.add_argument("--url", help="default: the model server of this home")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args(arguments)
    if chosen.rate is not None and not 0.1 <= chosen.rate <= 10_000:
        parser.error("--rate must be 0.1 to 10000")
    if chosen.seconds is not None and not 0.5 <= chosen.seconds <= 3600:
        parser.error("--seconds must be 0.5 to 3600")
    if chosen.clients is not None and not 1 <= chosen.clients <= 500:
        parser.error("--clients must be 1 to 500")
    scenarios = [
        SCENARIOS[name].scaled(chosen.rate, chosen.seconds, chosen.clients) for name in chosen.scenario or SHORT
    ]
    try:
        results, page = _run(load_settings(), scenarios, chosen)
    except ThroughlineError as error:
        _progress(str(error))
        return 1
    if chosen.json:
        print(json.dumps(as_json(results, str(page))))  # noqa: T201
    else:
        print(f"{verdict_line(results)}; report: {page}")  # noqa: T201
    return 1 if any(result.missed for result in results) else 0


def _run(settings: Settings, scenarios: Sequence[Scenario], chosen: argparse.Namespace) -> tuple[list[Result], Path]:
    url = (chosen.url or settings.url("model_http")).rstrip("/")
    require_loopback(url)
    names = served(settings, url)
    usecase = get_usecase(chosen.usecase or names[0])
    if usecase.name not in names:
        raise ThroughlineError(f"{url} does not serve {usecase.name}, only {', '.join(names)}.")
    goal = target(settings, usecase, url)
    # postpones locust, which patches the standard library
    from loadtests.run import command_of, run, warm_up

    switch = command_of(chosen.switch) if chosen.switch else None
    warm_up(goal)
    results = []
    for number, scenario in enumerate(scenarios, 1):
        _progress(f"{number}/{len(scenarios)} {scenario.name}: {scenario.about}, {scenario.seconds:.0f} s")
        measured = run(goal, scenario, switch, _every(PROGRESS_EVERY_S))
        results.append(Result(scenario, measured.measured, measured.samples, measured.memory, measured.switched))
        _progress(f"    {scenario_line(results[-1])}")
    about = {
        "use case": usecase.name,
        "endpoint": url,
        "cores": str(len(os.sched_getaffinity(0))),
        "load average": f"{os.getloadavg()[0]:.1f}",
    }
    at = datetime.now(UTC)
    page = settings.load_reports / f"{at:%Y%m%d-%H%M%S}.html"
    write_atomic(page, render(results, about, at))
    for old in sorted(page.parent.glob("*.html"))[:-KEPT]:
        old.unlink()
    return results, page


def _every(seconds: float) -> Callable[[Sequence[Sample]], None]:
    """A line at most every `seconds` while a scenario runs."""
    start = last = time.monotonic()

    def show(samples: Sequence[Sample]) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            failed = sum(sample.failure is not None for sample in samples)
            _progress(f"    {last - start:.0f} s: {len(samples)} requests, {failed} failed")

    return show


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
