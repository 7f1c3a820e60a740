"""Point-in-time joins: our Feast offline store against Feast's own and against a bare Polars join.

Owns: rounds and ratios. Does not own: the data and the right answer (`join_data`), the candidates (`join_worker`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import join_data, report
from benchmarks.join_worker import CANDIDATES
from throughline.errors import ThroughlineError
from throughline.settings import PROJECT_ROOT

ABOUT = """
A training set of the given size, joined point in time. `throughline` is Feast with our offline store on pinned Delta
tables, Arrow out; `duckdb` and `dask` are Feast's own stores on the same rows as Parquet; `polars` is a bare
`join_asof` on frames already in memory, without store, tables or registry: the floor, not a store. `rows_wrong` counts
spine rows whose answer differs from an oracle that shares no code with any of them.
"""
QUICK_PEERS = ("polars", "duckdb")
CHECK = "check"
SLOW_S = 60  # a candidate that needs longer warm is measured in the first round only: it would decide how long all take


class Worker:
    """A candidate's process. After it failed once it is not asked again."""

    def __init__(self, folder: Path, name: str, deadline_s: float) -> None:
        self.name = name
        self.failed: str | None = None
        self._deadline_s = deadline_s
        self._log = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.join_worker", str(folder), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=PROJECT_ROOT,
        )

    def ask(self, what: str) -> dict[str, float] | None:
        """One join; None when there is no answer, and then `failed` says why."""
        if self.failed:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._deadline_s, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        late = not timer.is_alive()
        timer.cancel()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or ["no reason given"])[-1]
        self.failed = f"no answer in {self._deadline_s:g} s" if late else last[:200]
        return None

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    rows = chosen.rows or (60_000 if chosen.quick else 300_000)
    size = join_data.Size(rows, chosen.views, chosen.entities, chosen.ticks)
    names = [report.OURS, *(QUICK_PEERS if chosen.quick else [n for n in CANDIDATES if n != report.OURS])]
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        folder = Path(made)
        report.progress(f"data: {size}")
        join_data.write(folder, size)
        workers: list[Worker] = []
        try:
            answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
            wrong: dict[str, int] = {}
            for name in names:  # warmed and checked one at a time, so that none starts while another is measured
                workers.append(Worker(folder, name, chosen.deadline))
                if checked := workers[-1].ask(CHECK):
                    wrong[name] = int(checked["rows_wrong"])
                    report.progress(f"{name}: warm, {wrong[name]} rows wrong, {checked['seconds']:.2f} s")
            for number in range(chosen.rounds):
                for worker in workers:
                    if any(each["seconds"] > SLOW_S for each in answers[worker.name]):
                        continue
                    if answer := worker.ask("run"):
                        answers[worker.name].append(answer)
                        report.progress(f"round {number + 1}: {worker.name} {answer['seconds']:.2f} s")
            failed = {worker.name: worker.failed for worker in workers if worker.failed}
        finally:
            for worker in workers:
                worker.end()
    if report.OURS in failed:
        raise ThroughlineError(f"point_in_time: our own store gave no answer ({failed[report.OURS]}).")
    seconds = {name: [each["seconds"] for each in answers[name]] for name in names}
    figures = {
        name: {"failed": failed[name]}
        if name in failed
        else {
            "seconds": report.spread(seconds[name]),
            "rows_per_s": report.spread([size.rows / each for each in seconds[name]]),
            "peak_rss_gib": round(max(each["peak_rss_gib"] for each in answers[name]), 2),
            "rows_wrong": wrong[name],
        }
        for name in names
    }
    ratios = {
        name: report.ratio(seconds[report.OURS][: len(seconds[name])], seconds[name], higher_is_better=False)
        for name in names
        if name != report.OURS and name not in failed
    }
    return report.result("point_in_time", chosen.quick, asdict(size), figures, ratios, "time for the same join")


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.point_in_time", description=ABOUT)
    parser.add_argument("--rows", type=int, help="of the spine; default 300000, quick 60000")
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--entities", type=int, default=2000, help="per view")
    parser.add_argument("--ticks", type=int, default=50, help="rows per entity and view")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every candidate, in turn")
    parser.add_argument("--deadline", type=float, default=300, help="seconds after which a join counts as failed")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
