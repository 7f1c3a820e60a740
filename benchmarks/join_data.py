"""Made-up feature views and a spine, and the right answer of their point-in-time join.

Owns: the data, and an oracle that shares no code with any candidate. Does not own: who is measured.
The data has what decides between right and nearly right: two rows of one instant (the later created one counts), a
ttl, missing values on the newest row, entities without rows, null keys, equal spine rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

ROW, TIME, CREATED = "row_id", "event_timestamp", "created"
FEATURES = 4
SEED = 2013
START, HOURS = datetime(2024, 1, 1, tzinfo=UTC), 24 * 180
_UTC = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Size:
    """`rows` of the spine, joined with `views` views of `entities` x `ticks` rows each."""

    rows: int
    views: int
    entities: int
    ticks: int


def key(view: int) -> str:
    return f"key_{view}"


def features(view: int) -> list[str]:
    return [f"v{view}_f{i}" for i in range(FEATURES)]


def ttl(view: int) -> timedelta:
    """Every second view forgets; zero means never."""
    return timedelta(days=20) if view % 2 else timedelta(0)


def make_view(size: Size, view: int) -> pl.DataFrame:
    random = np.random.default_rng([SEED, view])
    count = size.entities * size.ticks
    hours = random.integers(0, HOURS, count)
    rows = pl.DataFrame(
        {
            key(view): np.repeat(np.arange(size.entities), size.ticks),
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


def make_spine(size: Size) -> pl.DataFrame:
    random = np.random.default_rng(SEED)
    minutes = random.integers(0, HOURS * 60, size.rows)
    keys = {}
    for view in range(size.views):
        numbers = random.integers(0, round(size.entities * 1.02) + 1, size.rows)  # the last ones have no rows
        names = pl.Series(numbers).cast(pl.String)
        keys[key(view)] = ("e" + names).set(pl.Series(random.random(size.rows) < 0.005), None)
    spine = pl.DataFrame({TIME: minutes, **keys})
    again = spine.head(size.rows // 200)
    spine = pl.concat([spine.head(size.rows - again.height), again]).with_row_index(ROW)
    return spine.with_columns(
        pl.col(ROW).cast(pl.Int64), (pl.lit(START) + pl.duration(minutes=TIME)).cast(_UTC).alias(TIME)
    )


def right_answer(spine: pl.DataFrame, views: list[pl.DataFrame]) -> pl.DataFrame:
    """The spine with the features it may use, by binary search in one sorted array per view."""
    columns = []
    for number, rows in enumerate(views):
        ordered = rows.sort(key(number), TIME, CREATED)
        names = ordered[key(number)].unique().sort()
        places = dict(zip(names.to_list(), range(1, names.len() + 1), strict=True))
        # spine keys without rows get place 0, which no row has
        asked = spine[key(number)].replace_strict(places, default=0, return_dtype=pl.Int64).to_numpy()
        owner = ordered[key(number)].replace_strict(places, return_dtype=pl.Int64).to_numpy()
        width = 1 << 42  # hours of decades in milliseconds fit below it
        at, when = (frame[TIME].dt.epoch("ms").to_numpy() for frame in (spine, ordered))
        found = np.searchsorted(owner * width + when, asked * width + at, side="right") - 1
        safe = np.maximum(found, 0)
        good = (found >= 0) & (owner[safe] == asked)
        if ttl(number):
            good &= at - when[safe] <= ttl(number).total_seconds() * 1000
        taken = ordered.select(features(number))[safe]
        mask = pl.Series(good)
        columns += [taken[name].zip_with(mask, pl.Series([None], dtype=pl.Float64)) for name in features(number)]
    return spine.hstack(columns)


def rows_wrong(answer: pl.DataFrame, expected: pl.DataFrame) -> int:
    """Spine rows that were not answered once and right, and answers nobody asked for. NaN counts as missing."""
    names = [name for name in expected.columns if name.startswith("v")]
    given = answer.select(ROW, pl.col(names).cast(pl.Float64).fill_nan(None))
    twice = given.height - given[ROW].n_unique()
    once = given.unique(ROW, keep="first", maintain_order=True)
    strangers = once.join(expected, on=ROW, how="anti").height
    both = expected.select(ROW, *names).join(once, on=ROW, how="inner", suffix="_given")
    right = both.select(pl.all_horizontal(pl.col(n).eq_missing(pl.col(f"{n}_given")) for n in names).sum()).item()
    return expected.height - int(right) + twice + strangers


def write(folder: Path, size: Size) -> None:
    """Everything a candidate may read: Delta tables, the same rows as Parquet, spine and right answer."""
    from throughline.lakehouse.table import replace_all

    spine, views = make_spine(size), [make_view(size, number) for number in range(size.views)]
    for number, rows in enumerate(views):
        rows.write_parquet(folder / f"view_{number}.parquet")
        (folder / "delta").mkdir(exist_ok=True)
        replace_all(folder / "delta" / f"view_{number}", rows)
    spine.write_parquet(folder / "spine.parquet")
    right_answer(spine, views).write_parquet(folder / "expected.parquet")
    (folder / "size.json").write_text(json.dumps(asdict(size)))


def read_size(folder: Path) -> Size:
    return Size(**json.loads((folder / "size.json").read_text()))
