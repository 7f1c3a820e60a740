"""Which rows are trained on, and that workers share them fairly and repeatably."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.errors import ThroughlineError
from throughline.records import DatasetRecord, TableVersion
from training.data import shard, split_rows

HOLDOUT = datetime(2013, 3, 1, tzinfo=UTC)
DATASET = DatasetRecord(
    usecase="u",
    table=TableVersion(table="u/training/dataset", version=3),
    path="",
    fingerprint="f",
    as_of=HOLDOUT + timedelta(days=14),
    rows=0,
    numeric=["x"],
    categorical=["c"],
    inputs=[],
    holdout_from=HOLDOUT,
)


def frame(days: int = 50, per_day: int = 10, label_after: timedelta = timedelta(hours=3)) -> pl.DataFrame:
    """Rows up to ten days into the holdout."""
    count = days * per_day
    times = [
        HOLDOUT + timedelta(days=10) - timedelta(minutes=number * 1440 / per_day) for number in range(1, count + 1)
    ]
    return pl.DataFrame(
        {
            "row_key": [f"{number:04d}" for number in range(count)],
            "prediction_time": times,
            "label_available_at": [time + label_after for time in times],
            "label": [number % 2 for number in range(count)],
            "x": [float(number) for number in range(count)],
            "c": ["a"] * count,
        }
    )


def test_no_row_of_the_holdout_and_no_label_from_then_is_trained_on():
    rows = split_rows(frame(label_after=timedelta(hours=30)), DATASET, seed=1)
    for part in (rows.train, rows.validation):
        assert part["prediction_time"].max() < HOLDOUT
        assert part["label_available_at"].max() < HOLDOUT
    assert rows.trained_until < HOLDOUT - timedelta(hours=30)


def test_validation_is_whole_days_one_in_twenty():
    rows = split_rows(frame(), DATASET, seed=1)
    days = [set(part["prediction_time"].dt.date()) for part in (rows.train, rows.validation)]
    assert not days[0] & days[1]
    assert len(days[1]) == 2
    assert set(split_rows(frame(), DATASET, seed=2).validation["prediction_time"].dt.date()) != days[1]


def test_the_order_of_the_table_does_not_matter():
    rows, again = (split_rows(table, DATASET, seed=1) for table in (frame(), frame().sample(fraction=1, shuffle=True)))
    assert rows.train.equals(again.train)
    assert rows.validation.equals(again.validation)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (frame().head(0), "no row with a known label before the holdout"),
        (frame().filter(pl.col("prediction_time") >= HOLDOUT), "no row with a known label before the holdout"),
        (frame().with_columns(label=pl.lit(1)), "nothing to tell apart"),
        (frame().with_columns(label=pl.lit(2)), "other than 0 and 1"),
        (frame().with_columns(label=pl.lit(None, dtype=pl.Int64)), "other than 0 and 1"),
        (frame().drop("x", "c"), r"lacks column\(s\) x, c"),
    ],
)
def test_a_table_to_learn_nothing_from_is_refused_in_one_line(table, problem):
    with pytest.raises(ThroughlineError, match=problem) as refusal:
        split_rows(table, DATASET, seed=1)
    assert "u/training/dataset@3" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(1, 64), st.integers(0, 3), st.integers(0, 2))
def test_workers_take_equal_steps_of_different_rows(rows, world, batch, seed, epoch):
    if rows < world:
        with pytest.raises(ThroughlineError, match="fewer workers"):
            shard(rows, seed, epoch, 0, world, batch)
        return
    shares = [shard(rows, seed, epoch, rank, world, batch) for rank in range(world)]
    assert len({share.shape for share in shares}) == 1
    assert shares[0].size > 0
    taken = np.concatenate([share.ravel() for share in shares])
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(rows))
    assert len(taken) > rows - world * min(batch, rows // world) - world  # less than one step is left out


def test_a_row_has_the_same_place_in_every_run_and_another_in_every_epoch():
    np.testing.assert_array_equal(shard(100, 7, 1, 0, 2, 8), shard(100, 7, 1, 0, 2, 8))
    assert not np.array_equal(shard(100, 7, 1, 0, 2, 8), shard(100, 7, 2, 0, 2, 8))
    assert not np.array_equal(shard(100, 7, 1, 0, 2, 8), shard(100, 8, 1, 0, 2, 8))
