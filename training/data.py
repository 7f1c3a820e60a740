"""Which rows a worker takes, and in which order.

Owns: the shares of workers, the order within an epoch. Does not own: the rows (`experiment/prepared.py`).
The file of prepared rows is shuffled by the seed, and a worker's share is one part of it: a row's worker depends on
seed and world size only. In each epoch a worker shuffles its share again.
"""

from __future__ import annotations

import numpy as np

from throughline.launch.protocol import WorkerFailed


def share_of(rows: int, rank: int, world: int) -> slice:
    """The part of the file that a worker takes; all are equal, and up to `world - 1` rows at the end are left out."""
    share = rows // world
    if share == 0:
        raise WorkerFailed(f"{rows} training rows for {world} workers: use fewer workers or more days.", "bad_data")
    return slice(rank * share, (rank + 1) * share)


def steps_of(share: int, batch: int) -> tuple[int, int]:
    """(steps of an epoch, rows of a step), the same for every worker. Rows that do not fill a last step are left out of
    this epoch. A batch is no larger than the share."""
    batch = min(batch, share)
    return share // batch, batch


def order_of(share: int, batch: int, seed: int, epoch: int, rank: int) -> np.ndarray:
    """The rows of a worker's share in the order of an epoch: int64 [steps, rows of a step]."""
    steps, batch = steps_of(share, batch)
    return np.random.default_rng([seed, epoch, rank]).permutation(share)[: steps * batch].reshape(steps, batch)
