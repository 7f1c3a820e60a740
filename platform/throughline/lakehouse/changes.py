"""The net change in content between two versions of a table, from its change data feed.

Does not own: which features follow from it (`featurestore/incremental.py`).
"""

from __future__ import annotations

import polars as pl
from deltalake.exceptions import DeltaError

from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.delta import Location
from throughline.lakehouse.table import RUN_ID, open_table

_FEED = ("_change_type", "_commit_version", "_commit_timestamp")
_SIGN = {"insert": 1, "update_postimage": 1, "delete": -1, "update_preimage": -1}


def net_changes(location: Location, after: int, until: int) -> pl.DataFrame | None:
    """The rows whose number differs between version `after` and the later `until`; `net`: by how many.

    A row that was rewritten unchanged is no change, so retries and compactions are not seen. None when it is unknown: a
    version is gone, the columns changed, or the table has no change data feed.
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
