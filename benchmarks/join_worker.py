"""One candidate of the point-in-time benchmark, in a process of its own: its memory is nobody else's.

Owns: the same join in each candidate. Does not own: rounds and ratios.
Its first line means that it is ready: importing Feast takes seconds. Then a line on stdin is one join: `run` to one
Arrow table, `save` the same and then to a file, `stream` through what batches there are. Answers are JSON lines on the
first stdout.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather

from benchmarks import join_data as data

Join = Callable[[], Iterator[pa.Table]]
VIEWS = 3


def our_join(folder: Path, rows: int) -> Join:
    """A retrieval through Feast with our store: spine and views from Delta tables at pinned versions."""
    from throughline.featurestore.delta_source import DeltaSource

    versions = data.versions(folder)

    def source(table: str, **columns: str) -> DeltaSource:
        return DeltaSource(name=table, path=str(folder / table), version=versions[table], **columns)

    spine = source(f"spine_{rows}", timestamp_field=data.TIME)
    ours = "throughline.featurestore.delta_store.DeltaOfflineStore"
    feast, wanted = feast_store(folder, ours, lambda view, columns: source(view, **columns), [spine])
    return lambda: feast.get_historical_features(f"SELECT * FROM {spine.name}", wanted).batches()


def their_join(folder: Path, rows: int, store: str) -> Join:
    """A retrieval through Feast with one of its own stores: a data frame and Parquet files."""
    from feast import FileSource

    feast, wanted = feast_store(
        folder, store, lambda view, columns: FileSource(name=view, path=str(folder / f"{view}.parquet"), **columns), []
    )
    spine = pl.read_delta(str(folder / f"spine_{rows}")).to_pandas()
    # each time a frame of its own, as a caller has one: some stores write into it
    return lambda: iter([feast.get_historical_features(spine.copy(), wanted).to_arrow()])


def feast_store(
    folder: Path, store: str, source: Callable[[str, dict[str, str]], Any], more: list[Any]
) -> tuple[Any, list[str]]:
    """A Feast repository with the views applied, and the names of all features."""
    from feast import Entity, FeatureStore, FeatureView, Field, RepoConfig
    from feast.types import Float64
    from feast.value_type import ValueType

    feast = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry={
                "registry_type": "file",
                "path": str(folder / f"registry.{os.getpid()}.db"),
                "cache_ttl_seconds": 3600,
            },
            online_store=None,
            offline_store={"type": store},
            entity_key_serialization_version=3,
        )
    )
    views, entities = [], []
    columns = {"timestamp_field": data.TIME, "created_timestamp_column": data.CREATED}
    for number in range(VIEWS):
        entity = Entity(name=f"entity_{number}", join_keys=[data.key(number)], value_type=ValueType.STRING)
        views.append(
            FeatureView(
                name=f"view_{number}",
                entities=[entity],
                ttl=data.ttl(number),
                schema=[Field(name=name, dtype=Float64) for name in data.features(number)],
                source=source(f"view_{number}", columns),
                online=False,
            )
        )
        entities.append(entity)
    feast.apply([*more, *entities, *views])
    return feast, [f"{view.name}:{field.name}" for view in views for field in view.features]


def polars_join(folder: Path, rows: int) -> Join:
    """The least that gives the right values: frames in memory, sorted and joined; no store, no table, no order."""
    spine = pl.read_delta(str(folder / f"spine_{rows}"))
    views = [pl.read_delta(str(folder / f"view_{number}")) for number in range(VIEWS)]

    def join() -> Iterator[pa.Table]:
        result = spine.lazy().sort(data.TIME)
        for number, held in enumerate(views):
            right = held.lazy().sort(data.TIME, data.CREATED).drop(data.CREATED)
            result = result.join_asof(
                right,
                on=data.TIME,
                by=data.key(number),
                tolerance=data.ttl(number) or None,
                check_sortedness=False,
            )
        yield result.collect().to_arrow()

    return join


CANDIDATES: dict[str, Callable[[Path, int], Join]] = {
    "throughline": our_join,
    "polars_in_memory": polars_join,
    "feast_duckdb": lambda folder, rows: their_join(folder, rows, "duckdb"),
    "feast_dask": lambda folder, rows: their_join(folder, rows, "dask"),
}


def peak_rss_gib() -> float:
    """Of this process so far. Not `ru_maxrss`: that starts with what the parent had."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20 if found else float("nan")


def main() -> None:
    folder, name, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    # libraries print what they like; the answers must stay alone
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if name != "polars_in_memory":
        import feast  # noqa: F401
    print(json.dumps({"ready": True}), file=answers, flush=True)
    join: Join | None = None
    for line in sys.stdin:
        join = join or CANDIDATES[name](folder, rows)
        start, worked = time.perf_counter(), time.process_time()
        if line.strip() == "stream":
            answered = sum(batch.num_rows for batch in join())
        else:
            table = pa.concat_tables(join())
            answered = table.num_rows
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu_s": time.process_time() - worked,
            "rows": answered,
            "peak_rss_gib": peak_rss_gib(),
        }
        if line.strip() == "save":
            pa.feather.write_feather(table, str(folder / f"{name}_{rows}.arrow"), compression="uncompressed")
        table = None
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
