"""Point-in-time joins: our Feast offline store against Feast's own and against a bare Polars join.

Owns: sizes, rounds and ratios. Does not own: the data and the right answer (`join_data`), the candidates
(`join_worker`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import join_data, report
from benchmarks.join_data import Size
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT

ABOUT = """
A training set, joined point in time, from Delta to Arrow. `throughline` is Feast with our offline store: a spine and
three views, each read from a Delta table at its pinned version. Two races:

- against `polars_in_memory`: three bare `join_asof` on frames that are in memory already and may come out in any order,
  without store, tables or registry. It is the limit, not a store. Views of 3, 105 and 3,000 entities.
- against `feast_duckdb` and `feast_dask`, Feast's own stores, on the same rows as Parquet; at the size that they
  survive, with views that suit them: 50 rows per entity. With the views above, DuckDB took 48 s and 5.9 GiB for 10,000
  rows, and needed more than 16 GiB of address space for 100,000, as did Dask for 10,000.

`rows_wrong` counts spine rows whose answer differs from an oracle that shares no code with any of them. The lines
`throughline, N rows` are single runs in which the result passes in batches, as it does when it is written to a table:
memory is that of the views and a batch.
"""
SPINE, ENTITIES, TICKS = 10_000_000, (3, 105, 3000), (8760, 8760, 1500)
QUICK_SPINE, QUICK_TICKS = 1_000_000, (1752, 1752, 300)
FEAST_SPINE, QUICK_FEAST_SPINE = 100_000, 30_000
GROWTH = (1_000_000, 10_000_000, 50_000_000)
T = TypeVar("T")
LIMIT, STORES = "polars_in_memory", ("feast_duckdb", "feast_dask")
SLOW_S = 30


class Worker:
    """A candidate's process; started before its data is there. After a failure it gets no more requests."""

    def __init__(self, folder: Path, name: str, rows: int, deadline_s: float) -> None:
        self.name = name
        self.failed: str | None = None
        self._deadline_s = deadline_s
        self._log = (folder / f"{name}.{rows}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.join_worker", str(folder), name, str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=PROJECT_ROOT,
        )

    def request(self, what: str) -> dict[str, float] | None:
        """One join; None without an answer, whose reason is then in `failed`."""
        if self.failed:
            return None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        return self.heard()

    def heard(self) -> dict[str, float] | None:
        """Its next line; the first means that it is ready."""
        assert self._process.stdout is not None
        timer = threading.Timer(self._deadline_s, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
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
        """May be called again."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            assert file is not None
            with contextlib.suppress(BrokenPipeError):
                file.close()


def race(
    folder: Path, rows: int, workers: list[Worker], rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Figures of each candidate and our ratios to the others; all join the same `rows` in turn. Ends the workers."""
    names = [worker.name for worker in workers]
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    wrong: dict[str, int] = {}
    try:
        for worker in workers:
            if warm := worker.request("save"):
                # such a slow candidate is measured once: it would decide how long all take
                answers[worker.name] = [warm] if warm["seconds"] > SLOW_S else []
                wrong[worker.name] = alone(join_data.check, folder, rows, folder / f"{worker.name}_{rows}.arrow")
                report.progress(f"{worker.name}: warm, {warm['seconds']:.2f} s, {wrong[worker.name]} rows wrong")
        running = [worker for worker in workers if not answers[worker.name]]
        for number in range(rounds):
            for worker in running:
                if answer := worker.request("run"):
                    answers[worker.name].append(answer)
                    report.progress(f"round {number + 1}: {worker.name} {answer['seconds']:.2f} s")
        failed = {worker.name: worker.failed for worker in workers if worker.failed}
    finally:
        for worker in workers:
            worker.end()
    if report.OURS in failed:
        raise ThroughlineError(f"point_in_time: our own store gave no answer ({failed[report.OURS]}).")
    figures = {
        name: {"failed": failed[name], "rows": rows}
        if name in failed
        else {**figures_of(rows, answers[name]), "rows_wrong": wrong[name]}
        for name in names
    }
    seconds = {name: [each["seconds"] for each in answers[name]] for name in names}
    ratios = {
        name: report.ratio(seconds[report.OURS][: len(seconds[name])], seconds[name], higher_is_better=False)
        for name in names
        if name != report.OURS and name not in failed
    }
    return figures, ratios


def figures_of(rows: int, answers: list[dict[str, float]]) -> dict[str, Any]:
    seconds = [each["seconds"] for each in answers]
    return {
        "seconds": report.spread(seconds),
        "rows_per_s": report.spread([rows / each for each in seconds]),
        "cpu_s": report.spread([each["cpu_s"] for each in answers]),
        "peak_rss_gib": round(max(each["peak_rss_gib"] for each in answers), 2),
        "rows": rows,
    }


def growth(folder: Path, rows: int, deadline_s: float) -> dict[str, Any]:
    """Figures of one run of ours that keeps no batch, in a process that did nothing else."""
    worker = Worker(folder, report.OURS, rows, deadline_s)
    try:
        worker.heard()
        answer = worker.request("stream")
    finally:
        worker.end()
    if answer is None:
        return {"failed": worker.failed, "rows": rows}
    assert answer["rows"] == rows, "a spine row was lost"
    report.progress(f"{rows} rows in batches: {answer['seconds']:.2f} s, {answer['peak_rss_gib']:.2f} GiB")
    return figures_of(rows, [answer])


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work` in a process of its own: it needs memory that the candidates should have."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def described(size: Size, prefix: str) -> dict[str, Any]:
    view_rows = [entities * ticks for entities, ticks in zip(size.entities, size.ticks, strict=True)]
    return {f"{prefix}rows": size.rows, f"{prefix}entities": size.entities, f"{prefix}view_rows": view_rows}


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    rows = chosen.rows or (QUICK_SPINE if chosen.quick else SPINE)
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 3)
    grown = [] if chosen.quick else chosen.growth
    large = Size(rows, ENTITIES, QUICK_TICKS if chosen.quick else TICKS)
    feast_rows = chosen.feast_rows or (QUICK_FEAST_SPINE if chosen.quick else FEAST_SPINE)
    small = Size(feast_rows, (2000, 2000, 2000), (50, 50, 50))
    with tempfile.TemporaryDirectory(prefix="bench-") as made, contextlib.ExitStack() as started:
        folders = {size: Path(made) / name for size, name in ((large, "large"), (small, "small"))}
        peers = {large: [LIMIT], small: STORES[:1] if chosen.quick else STORES}
        workers: dict[Size, list[Worker]] = {large: [], small: []}
        for size, folder in folders.items():
            folder.mkdir()
            for name in (report.OURS, *peers[size]):
                workers[size].append(Worker(folder, name, size.rows, chosen.deadline))
                started.callback(workers[size][-1].end)
        report.progress(f"data: {large}, {small}")
        sizes = [Size(n, large.entities, large.ticks) for n in {rows, *grown}]
        alone(join_data.write, folders[large], sizes, [rows])
        alone(join_data.write, folders[small], [small], [small.rows])
        for worker in (*workers[large], *workers[small]):
            worker.heard()
        figures, ratios = race(folders[large], rows, workers[large], chosen.rounds)
        streamed = {f"throughline, {n:,} rows": growth(folders[large], n, chosen.deadline) for n in grown}
        small_figures, small_ratios = race(folders[small], small.rows, workers[small], chosen.rounds)
    figures |= streamed
    figures |= {f"throughline, {small.rows:,} rows": small_figures.pop(report.OURS), **small_figures}
    setup = {"features": 3 * join_data.FEATURES} | described(large, "") | described(small, "feast_")
    measured = report.result(
        "point_in_time", chosen.quick, setup, figures, ratios | small_ratios, "time for the same join"
    )
    ours = figures[report.OURS]
    return measured | {"rows_per_s": ours["rows_per_s"]["median"], "peak_rss_gib": ours["peak_rss_gib"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.point_in_time", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help=f"of the spine; default {SPINE}, quick {QUICK_SPINE}")
    parser.add_argument(
        "--feast-rows",
        type=int,
        help=f"of the spine that Feast's stores get; default {FEAST_SPINE}, quick {QUICK_FEAST_SPINE}",
    )
    parser.add_argument("--growth", type=int, nargs="*", default=GROWTH, help="rows that pass in batches; not in quick")
    parser.add_argument("--rounds", type=int, help="repetitions of every candidate, in turn; default 3, quick 2")
    parser.add_argument("--deadline", type=float, default=300, help="seconds after which a join counts as failed")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
