"""What a table holds, whatever its address: fingerprints by day and in all.

A retry, a compaction or the same rows at another version change none. Owns: what counts as content of a table. Does
not own: the digest of a frame (`foundation/fingerprint.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import polars as pl

from throughline.foundation.fingerprint import combine, fingerprint_frame
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import DAY, RUN_ID, read


def day_fingerprints(settings: Settings, pinned: TableReference, days: Iterable[date] | None = None) -> dict[date, str]:
    """The fingerprint of each day (of all days that hold rows, when none are named) of a table partitioned by day."""
    rows = read(settings, pinned)
    if days is not None:
        rows = rows.filter(pl.col(DAY).is_in(sorted(days)))
    held = rows.collect()
    parts = {key[0]: part for key, part in held.partition_by(DAY, as_dict=True).items()}
    return {
        day: fingerprint_frame(parts.get(day, held.clear()), [], exclude=[RUN_ID])
        for day in sorted(parts if days is None else days)
    }


def fingerprint_table(settings: Settings, pinned: TableReference) -> str:
    """The fingerprint of a whole table, by day where it has days."""
    if DAY in read(settings, pinned).collect_schema():
        return combine(*(f"{day} {digest}" for day, digest in day_fingerprints(settings, pinned).items()))
    return fingerprint_frame(read(settings, pinned).collect(), [], exclude=[RUN_ID])
