"""One candidate of the point-in-time benchmark, in a process of its own: its memory is nobody else's.

Owns: how each candidate is asked for the same join. Does not own: rounds and ratios.
A line `check` or `run` on stdin is one join; the answer is a JSON line on what was stdout at the start.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa

from benchmarks import join_data as data

Join = Callable[[], pa.Table]


def feast_join(folder: Path, store: str) -> Join:
    """A retrieval through Feast, entity frame to Arrow. `store`: throughline (Delta), duckdb or dask (Parquet)."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Float64
    from feast.value_type import ValueType

    from throughline.featurestore.delta_store import DeltaSource

    ours = "throughline.featurestore.delta_store.DeltaOfflineStore"
    feast = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry={"registry_type": "file", "path": str(folder / f"{store}.db"), "cache_ttl_seconds": 3600},
            online_store=None,
            offline_store={"type": ours if store == "throughline" else store},
            entity_key_serialization_version=3,
        )
    )
    views, entities = [], []
    for number in range(data.read_size(folder).views):
        columns = {"timestamp_field": data.TIME, "created_timestamp_column": data.CREATED}
        if store == "throughline":
            table = str(folder / "delta" / f"view_{number}")
            source = DeltaSource(name=f"view_{number}", path=table, version=0, **columns)
        else:
            source = FileSource(name=f"view_{number}", path=str(folder / f"view_{number}.parquet"), **columns)
        entity = Entity(name=f"entity_{number}", join_keys=[data.key(number)], value_type=ValueType.STRING)
        views.append(
            FeatureView(
                name=f"view_{number}",
                entities=[entity],
                ttl=data.ttl(number),
                schema=[Field(name=name, dtype=Float64) for name in data.features(number)],
                source=source,
                online=False,
            )
        )
        entities.append(entity)
    feast.apply([*entities, *views])
    spine = pl.read_parquet(folder / "spine.parquet").to_pandas()
    wanted = [f"{view.name}:{field.name}" for view in views for field in view.features]
    # each time a frame of its own, as a caller has one: some stores write into it
    return lambda: feast.get_historical_features(spine.copy(), wanted).to_arrow()


def polars_join(folder: Path, _: str) -> Join:
    """The least that gives the right answer: frames in memory, sorted and joined; no store, no table, no registry."""
    spine = pl.read_parquet(folder / "spine.parquet")
    views = [pl.read_parquet(folder / f"view_{n}.parquet") for n in range(data.read_size(folder).views)]

    def join() -> pa.Table:
        result = spine.lazy().sort(data.TIME)
        for number, rows in enumerate(views):
            right = rows.lazy().sort(data.TIME, data.CREATED).drop(data.CREATED)
            result = result.join_asof(
                right, on=data.TIME, by=data.key(number), tolerance=data.ttl(number) or None, check_sortedness=False
            )
        return result.sort(data.ROW).collect().to_arrow()

    return join


CANDIDATES: dict[str, Callable[[Path, str], Join]] = {
    "throughline": feast_join,
    "polars": polars_join,
    "duckdb": feast_join,
    "dask": feast_join,
}


def peak_rss_gib() -> float:
    """Of this process so far. Not `ru_maxrss`: that starts with what the parent had."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20 if found else float("nan")


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    # libraries print what they like; the answers must stay alone
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    join = CANDIDATES[name](folder, name)
    for line in sys.stdin:
        start = time.perf_counter()
        table = join()
        answer = {"seconds": time.perf_counter() - start, "peak_rss_gib": peak_rss_gib()}
        if line.strip() == "check":
            expected = pl.read_parquet(folder / "expected.parquet")
            answer["rows_wrong"] = data.rows_wrong(pl.DataFrame(table), expected)
        del table
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
