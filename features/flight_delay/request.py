"""Features computed from the request only, by one function for training rows and live requests."""

from __future__ import annotations

import polars as pl

ZONE = "America/New_York"


def derive(requests: pl.DataFrame) -> pl.DataFrame:
    """Add local hour (fraction), weekday (1 Monday to 7) and scheduled block time in minutes.

    Expects `scheduled_departure` and `scheduled_arrival` as UTC datetimes; keeps rows and their order.
    """
    local = pl.col("scheduled_departure").dt.convert_time_zone(ZONE)
    block = pl.col("scheduled_arrival") - pl.col("scheduled_departure")
    return requests.with_columns(
        departure_hour=local.dt.hour().cast(pl.Float64) + local.dt.minute() / 60,
        departure_weekday=local.dt.weekday().cast(pl.Float64),
        block_minutes=block.dt.total_minutes().cast(pl.Float64),
    )
