"""Fingerprints of the days of a table: a retry, a compaction or the same rows at another version change none.

Owns: which columns are content. Does not own: the digest of a frame (`foundation/fingerprint.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import polars as pl

from throughline.foundation.fingerprint import fingerprint_frame
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, RUN_ID, read


def day_fingerprints(settings: Settings, pinned: TableReference, days: Iterable[date]) -> dict[date, str]:
    """The fingerprint of each of `days` of a table partitioned by day; of a day without rows, that of no rows."""
    rows = read(settings, pinned).filter(pl.col(DAY).is_in(sorted(days))).collect()
    parts = {day: part for (day,), part in rows.partition_by(DAY, as_dict=True).items()}
    return {day: fingerprint_frame(parts.get(day, rows.clear()), [], exclude=[RUN_ID]) for day in sorted(days)}
