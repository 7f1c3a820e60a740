"""From an event to a value that requests read: the latency of a push, on SQLite and on a real Redis.

Owns: the pushes and their clock. Does not own: the home (`serving_home`).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports
from throughline.usecase import UseCase, load_object, load_usecases

ABOUT = """
A push writes a row of a feature view to its Delta table and to the online store, and returns when requests read it; the
lookup of all views that follows must give what was pushed, or the benchmark fails. `event_to_online` is from the call
to its return, `read` is that lookup. `feast_online_only` is Feast's `write_to_online_store` with its own store of the
same kind: it writes no table, and on SQLite lets an older row hide a newer one. The ratio is what it costs that
training sees the pushed row, too, from the instant on at which requests did.
"""
STORES = ("sqlite", "redis")
BLOCKS = 5


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    pushes = chosen.pushes or (100 if chosen.quick else 1000)
    usecase = next(iter(load_usecases().values()))
    figures: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for kind in STORES:
        with tempfile.TemporaryDirectory(prefix="bench-") as made, contextlib.ExitStack() as stack:
            server = stack.enter_context(_redis(Path(made))) if kind == "redis" else None
            settings = load_settings(
                home=Path(made) / "home", clock="wall", online_store=server and f"redis://{server}/0"
            )
            ours, reads, theirs = _alternately(settings, usecase, server, pushes)
        peer = f"feast_online_only_{kind}"
        figures[f"{report.OURS}_{kind}"] = {**_figures("event_to_online", ours), **_figures("read", reads)}
        figures[peer] = _figures("event_to_online", theirs)
        ratios[peer] = report.ratio(_blocks(ours), _blocks(theirs), higher_is_better=False)
        report.progress(f"{kind}: {figures[f'{report.OURS}_{kind}']}")
    setup = {"pushes": pushes, "rows_per_push": 1, "one_caller": True}
    return report.result("online_push", chosen.quick, setup, figures, ratios, "median latency of a push")


def _alternately(
    settings: Settings, usecase: UseCase, server: str | None, pushes: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each push, of the read after it, and of the peer's write of the same row."""
    from benchmarks.serving_home import make_home
    from throughline.featurestore.online import FeatureReader
    from throughline.featurestore.push import Pusher
    from throughline.usecase.requests import parse_columns

    instances = make_home(settings, usecase)
    pusher, reader = Pusher(settings, usecase), FeatureReader(settings, usecase)
    view, key, features = _a_view(settings, usecase)
    by_feast = _feast(settings, usecase, server, view)
    ours, reads, theirs = [], [], []
    for number in range(-10, pushes):  # the first ones warm and do not count
        instance, value = instances[number % len(instances)], float(number)
        row = {key: instance[key], **dict.fromkeys(features, value)}
        requested = parse_columns(usecase, [instance])
        pushed, _ = _timed(lambda row=row: pusher.push(view, [row]))
        took, read = _timed(lambda requested=requested: reader.read(requested))
        if (got := read.column(features[0])[0]) != value:
            raise ThroughlineError(f"Push {number} of {view} was not read back: {got}.")
        peer, _ = _timed(lambda row=row: by_feast(row))
        if number >= 0:
            ours.append(pushed)
            reads.append(took)
            theirs.append(peer)
    return ours, reads, theirs


def _a_view(settings: Settings, usecase: UseCase) -> tuple[str, str, list[str]]:
    """The first view with one key: its name, the key, its features."""
    from throughline.featurestore.materialise import join_keys
    from throughline.featurestore.store import open_store

    for view in sorted(open_store(settings, usecase).list_feature_views(), key=lambda each: each.name):
        if len(keys := join_keys(view)) == 1:
            return view.name, keys[0], [feature.name for feature in view.features]
    raise ThroughlineError(f"{usecase.name} has no feature view with one key.")


def _feast(settings: Settings, usecase: UseCase, server: str | None, view: str) -> Callable[[dict[str, Any]], None]:
    """Feast's own way to write a row online, with the same definitions."""
    import pandas as pd
    from feast import FeatureStore, FileSource, RepoConfig

    from throughline.featurestore.layout import EVENT_TIME

    folder = settings.home / "peer"
    folder.mkdir()
    sqlite = {"type": "sqlite", "path": str(folder / "online.db")}
    store = FeatureStore(
        config=RepoConfig(
            project="peer",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "redis", "connection_string": f"{server},db=1"} if server else sqlite,
            entity_key_serialization_version=3,
        )
    )

    def source(table: str) -> FileSource:
        return FileSource(name=table, path=str(folder / f"{table}.parquet"), timestamp_field=EVENT_TIME)

    store.apply(load_object(usecase.features.definitions).build(source))

    def write(row: dict[str, Any]) -> None:
        store.write_to_online_store(view, pd.DataFrame([{**row, EVENT_TIME: pd.Timestamp.now("UTC")}]))

    return write


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """A Redis of its own that keeps nothing on disk; its HOST:PORT."""
    import redis

    if shutil.which("redis-server") is None:
        raise ThroughlineError("redis-server is not installed: apt-get install redis-server.")
    port = take_ports(1)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with contextlib.suppress(redis.ConnectionError):
                    redis.Redis(port=port).ping()
                    break
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _figures(name: str, seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{name}_p50_ms": round(cuts[49] * 1000, 2), f"{name}_p99_ms": round(cuts[98] * 1000, 2)}


def _blocks(seconds: list[float]) -> list[float]:
    size = len(seconds) // BLOCKS
    return [statistics.median(seconds[n * size : (n + 1) * size]) for n in range(BLOCKS)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.online_push", description=__doc__)
    parser.add_argument("--pushes", type=int, help="pushes to each store")
    return report.run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
