"""Made-up feature views and a spine, and the right answer of their point-in-time join.

Owns: the data, and an oracle that shares no code with any candidate. Does not own: who is measured.
The data has what decides between right and nearly right: two rows of one instant (the later created one counts), a
ttl, missing values on the newest row, entities without rows, null keys, equal spine rows. Nothing is in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

ROW, TIME, CREATED = "row_id", "event_timestamp", "created"
FEATURES = 6
SEED = 2013
START, HOURS = datetime(2024, 1, 1, tzinfo=UTC), 24 * 365
PART_ROWS = 2_500_000
_UTC = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Size:
    """`rows` of the spine, joined with a view of `entities` x `ticks` rows for each of them."""

    rows: int
    entities: tuple[int, ...]
    ticks: tuple[int, ...]

    @property
    def views(self) -> range:
        return range(len(self.entities))


def key(view: int) -> str:
    return f"key_{view}"


def features(view: int) -> list[str]:
    return [f"v{view}_f{i}" for i in range(FEATURES)]


def ttl(view: int) -> timedelta:
    """Every second view forgets; zero means never."""
    return timedelta(days=20) if view % 2 else timedelta(0)


def make_view(size: Size, view: int) -> pl.DataFrame:
    random = np.random.default_rng([SEED, view])
    entities, ticks = size.entities[view], size.ticks[view]
    count = entities * ticks
    hours = random.integers(0, HOURS, count)
    rows = pl.DataFrame(
        {
            key(view): np.repeat(np.arange(entities), ticks),
            TIME: hours,
            **{name: random.normal(size=count).round(4) for name in features(view)},
        }
    )
    corrected = rows.sample(count // 100, seed=SEED).with_columns(pl.col(features(view)) + 100)
    return (
        pl.concat([rows, corrected])
        .sample(fraction=1, shuffle=True, seed=SEED)
        .with_row_index("place")
        .select(
            pl.format("e{}", key(view)).alias(key(view)),
            (pl.lit(START) + pl.duration(hours=TIME)).cast(_UTC).alias(TIME),
            # no two rows were created in the same instant: which of two counts must not be a matter of luck
            (pl.lit(START) + pl.duration(hours=TIME, microseconds=pl.col("place").cast(pl.Int64) + 1))
            .cast(_UTC)
            .alias(CREATED),
            *(
                pl.when(pl.col("place") % 97 != i).then(pl.col(name)).alias(name)
                for i, name in enumerate(features(view))
            ),
        )
    )


def make_spine(size: Size) -> Iterator[pl.DataFrame]:
    """The spine in parts of at most `PART_ROWS`."""
    for start in range(0, size.rows, PART_ROWS):
        yield _spine_part(size, start, min(PART_ROWS, size.rows - start))


def _spine_part(size: Size, start: int, count: int) -> pl.DataFrame:
    random = np.random.default_rng([SEED, start])
    minutes = random.integers(0, HOURS * 60, count)
    keys = {}
    for view, entities in enumerate(size.entities):
        names = pl.Series(random.integers(0, round(entities * 1.02) + 1, count)).cast(pl.String)
        keys[key(view)] = ("e" + names).set(pl.Series(random.random(count) < 0.005), None)  # the last have no rows
    spine = pl.DataFrame({TIME: minutes, **keys})
    again = spine.head(count // 200)
    return (
        pl.concat([spine.head(count - again.height), again])
        .with_row_index(ROW, offset=start)
        .with_columns(pl.col(ROW).cast(pl.Int64), (pl.lit(START) + pl.duration(minutes=TIME)).cast(_UTC).alias(TIME))
    )


def right_answer(spine: pl.DataFrame, views: list[pl.DataFrame]) -> pl.DataFrame:
    """The spine with the features it may use, by binary search in one sorted array per view."""
    columns = []
    for number, rows in enumerate(views):
        ordered = rows.sort(key(number), TIME, CREATED)
        names = ordered[key(number)].unique().sort()
        places = dict(zip(names.to_list(), range(1, names.len() + 1), strict=True))
        # spine keys without rows get place 0, which no row has
        wanted = spine[key(number)].replace_strict(places, default=0, return_dtype=pl.Int64).to_numpy()
        owner = ordered[key(number)].replace_strict(places, return_dtype=pl.Int64).to_numpy()
        width = 1 << 42  # hours of decades in milliseconds fit below it
        at, when = (frame[TIME].dt.epoch("ms").to_numpy() for frame in (spine, ordered))
        found = np.searchsorted(owner * width + when, wanted * width + at, side="right") - 1
        safe = np.maximum(found, 0)
        good = (found >= 0) & (owner[safe] == wanted)
        if ttl(number):
            good &= at - when[safe] <= ttl(number).total_seconds() * 1000
        taken = ordered.select(features(number))[safe]
        mask = pl.Series(good)
        columns += [taken[name].zip_with(mask, pl.Series([None], dtype=pl.Float64)) for name in features(number)]
    return spine.hstack(columns)


def rows_wrong(answer: pl.DataFrame, expected: pl.DataFrame) -> int:
    """Spine rows that were not answered once and right, and answers nobody wanted for. NaN counts as missing.

    expected: its rows are numbered from 0, in this order. One column is looked at a time: answers are large.
    """
    numbers = answer[ROW].cast(pl.Int64)
    wanted = numbers.is_between(0, expected.height - 1) & numbers.is_first_distinct()
    places = numbers.filter(wanted)
    right = pl.repeat(True, places.len(), eager=True)
    for name in expected.columns:
        if name.startswith("v"):
            given = answer[name].filter(wanted).cast(pl.Float64).fill_nan(None)
            right &= given.eq_missing(expected[name].gather(places))
    return expected.height - int(right.sum()) + answer.height - places.len()


def write(folder: Path, sizes: list[Size], checked: list[int]) -> None:
    """Everything a candidate may read: Delta tables of the views and of a spine per size, the views as Parquet, too.

    sizes: of equal views. checked: numbers of rows for which the right answer is kept.
    """
    from deltalake import write_deltalake

    folder.mkdir(exist_ok=True)
    views = [make_view(sizes[0], number) for number in sizes[0].views]
    for number, rows in enumerate(views):
        rows.write_parquet(folder / f"view_{number}.parquet")
        write_deltalake(str(folder / f"view_{number}"), rows.to_arrow())
    for size in sizes:
        expected = folder / f"expected_{size.rows}"
        expected.mkdir()
        for number, part in enumerate(make_spine(size)):
            write_deltalake(str(folder / f"spine_{size.rows}"), part.to_arrow(), mode="append")
            if size.rows in checked:
                right_answer(part, views).drop(TIME).write_parquet(expected / f"{number:03}.parquet")


def versions(folder: Path) -> dict[str, int]:
    """The version of each Delta table that was written."""
    from deltalake import DeltaTable

    return {log.parent.name: DeltaTable(str(log.parent)).version() for log in folder.glob("*/_delta_log")}


def check(folder: Path, rows: int, answer: Path) -> int:
    """`rows_wrong` of an answer in an Arrow file."""
    return rows_wrong(pl.read_ipc(answer), pl.read_parquet(folder / f"expected_{rows}" / "*.parquet"))
