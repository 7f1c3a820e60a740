"""The content of a table, whatever its versions: fingerprints of its days, the net change between two versions.

Owns: which columns are content. Does not own: the digest of a frame (`foundation/fingerprint.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import polars as pl
from deltalake.exceptions import DeltaError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.fingerprint import fingerprint_frame
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.delta import Location
from throughline.lakehouse.table import DAY, RUN_ID, open_table, read

_FEED = ("_change_type", "_commit_version", "_commit_timestamp")
_SIGN = {"insert": 1, "update_postimage": 1, "delete": -1, "update_preimage": -1}


def day_fingerprints(settings: Settings, pinned: TableReference, days: Iterable[date]) -> dict[date, str]:
    """The fingerprint of each of `days` of a table partitioned by day; of a day without rows, that of no rows."""
    rows = read(settings, pinned).filter(pl.col(DAY).is_in(sorted(days))).collect()
    parts = {day: part for (day,), part in rows.partition_by(DAY, as_dict=True).items()}
    return {day: fingerprint_frame(parts.get(day, rows.clear()), [], exclude=[RUN_ID]) for day in sorted(days)}


def net_changes(location: Location, after: int, until: int) -> pl.DataFrame | None:
    """The rows whose number differs between version `after` and the later `until`; `net`: by how many.

    Rows rewritten unchanged, by a retry or a compaction, do not count. None when it is unknown: a version is gone, the
    columns changed, or the table has no change data feed.
    """
    try:
        table = open_table(location, until)
        if open_table(location, after).schema() != table.schema():
            return None
        reader = table.load_cdf(starting_version=after + 1, ending_version=until)
    except (DeltaError, OSError, ThroughlineError):
        return None
    try:
        feed = pl.DataFrame(reader.read_all())
    except Exception as error:
        if type(error) is not Exception:  # the type that the reader raises for a file that was vacuumed
            raise
        return None
    content = [name for name in feed.columns if name not in (*_FEED, RUN_ID)]
    sign = pl.col(_FEED[0]).replace_strict(_SIGN, return_dtype=pl.Int64)
    return feed.group_by(content).agg(sign.sum().alias("net")).filter(pl.col("net") != 0)
