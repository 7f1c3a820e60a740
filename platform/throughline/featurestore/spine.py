"""The spine (rows to predict, with their labels), read as known at an instant.

It has a row when something is announced, another when its label arrives, one more when that is corrected. Owns: which
of these rows counts. Does not own: how they are made (the use case).
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from throughline.featurestore.layout import KNOWN
from throughline.usecase import UseCase


def as_known(usecase: UseCase, spine: pl.LazyFrame, as_of: datetime | None = None) -> pl.LazyFrame:
    """One row per prediction key: the newest that was known at `as_of` (UTC; None: of all there are)."""
    if as_of is not None:
        spine = spine.filter(pl.col(KNOWN) <= as_of)
    return spine.sort(KNOWN, maintain_order=True).unique(usecase.prediction.key, keep="last", maintain_order=True)
