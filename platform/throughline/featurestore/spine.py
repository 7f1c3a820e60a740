"""The spine, read at an instant.

The spine says what became known, in the order it did: a row when something is announced, another when its label comes,
one more should that be corrected. Owns: which of these rows counts. Does not own: how they are made (the use case).
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from throughline.usecase import UseCase

KNOWN = "available_at"


def as_known(usecase: UseCase, spine: pl.LazyFrame, as_of: datetime | None = None) -> pl.LazyFrame:
    """One row per prediction key: the newest that was known at `as_of` (UTC; None: of all there are)."""
    if as_of is not None:
        spine = spine.filter(pl.col(KNOWN) <= as_of)
    return spine.sort(KNOWN, maintain_order=True).unique(usecase.prediction.key, keep="last", maintain_order=True)
