"""Workers share the rows fairly and repeatably: equal steps, different rows, the same order in every run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from throughline.launch.protocol import WorkerFailed
from training.data import order_of, share_of, steps_of

COUNTS = st.integers(0, 300)
WORLDS = st.integers(1, 8)
BATCHES = st.integers(1, 64)
SEEDS = st.integers(0, 2**31 - 1)


@settings(max_examples=200)
@given(COUNTS, WORLDS)
def test_shares_are_equal_and_disjoint_and_leave_out_fewer_rows_than_there_are_workers(rows, world):
    assume(rows >= world)
    parts = [range(rows)[share_of(rows, rank, world)] for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    taken = [row for part in parts for row in part]
    assert len(set(taken)) == len(taken)
    assert rows - world < len(taken) <= rows


@settings(max_examples=50)
@given(st.integers(0, 7), WORLDS)
def test_more_workers_than_rows_are_refused_in_one_line(rows, world):
    assume(rows < world)
    with pytest.raises(WorkerFailed, match="use fewer workers") as refusal:
        share_of(rows, 0, world)
    assert refusal.value.reason == "bad_data"
    assert "\n" not in str(refusal.value)


@settings(max_examples=200)
@given(COUNTS, WORLDS, BATCHES, SEEDS, st.integers(0, 50))
def test_workers_take_equal_steps_of_different_rows(rows, world, batch, seed, epoch):
    assume(rows >= world)
    taken, shapes = [], set()
    for rank in range(world):
        part = share_of(rows, rank, world)
        share = part.stop - part.start
        order = order_of(share, batch, seed, epoch, rank)
        shapes.add(order.shape)
        assert order.shape == steps_of(share, batch)
        taken.extend(np.arange(rows)[part][order.ravel()])
    assert len(shapes) == 1
    assert 0 not in shapes.pop()
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(rows))
    assert len(taken) > rows - world * min(batch, rows // world) - world  # less than one step is left out


@settings(max_examples=100)
@given(st.integers(64, 300), BATCHES, SEEDS, st.integers(0, 50), st.integers(0, 7))
def test_a_rows_place_follows_from_seed_epoch_and_rank_and_from_nothing_else(share, batch, seed, epoch, rank):
    order = order_of(share, batch, seed, epoch, rank)
    np.random.default_rng().random(3)
    np.random.seed(epoch)
    np.testing.assert_array_equal(order, order_of(share, batch, seed, epoch, rank))
    for other in ((seed + 1, epoch, rank), (seed, epoch + 1, rank), (seed, epoch, rank + 1)):
        assert not np.array_equal(order, order_of(share, batch, *other))


@settings(max_examples=100)
@given(st.integers(1, 300), BATCHES, BATCHES, SEEDS)
def test_the_size_of_a_batch_does_not_change_the_order(share, batch, another, seed):
    orders = [order_of(share, size, seed, 1, 0).ravel() for size in (batch, another)]
    common = min(map(len, orders))
    np.testing.assert_array_equal(orders[0][:common], orders[1][:common])
