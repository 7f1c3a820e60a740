"""Features computed from the request only, by one function for training rows and live requests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from throughline.foundation.local_time import local_time

ZONE = "America/New_York"

_MINUTE, _DAY = np.timedelta64(1, "m"), np.timedelta64(1, "D")
_A_MONDAY = np.datetime64("1969-12-29")


def derive(fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Local hour (fraction), weekday (1 Monday to 7) and scheduled block time in whole minutes.

    Reads `scheduled_departure` and `scheduled_arrival`: datetime64[us] in UTC. Returns float64, NaN where one is NaT.
    """
    departure = fields["scheduled_departure"]
    local = local_time(departure, ZONE).astype("datetime64[m]")
    day = local.astype("datetime64[D]")
    minutes = (local - day) / _MINUTE
    hours = np.floor(minutes / 60)
    return {
        "departure_hour": hours + (minutes - 60 * hours) / 60,
        "departure_weekday": (day - _A_MONDAY) / _DAY % 7 + 1,
        "block_minutes": np.trunc((fields["scheduled_arrival"] - departure) / _MINUTE),
    }
