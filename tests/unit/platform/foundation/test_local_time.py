"""Local time of many instants equals what the standard library gives for each."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.foundation.local_time import local_time

ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "UTC")


@given(
    st.sampled_from(ZONES),
    st.lists(st.datetimes(datetime(1901, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)), min_size=1),
)
def test_every_instant_reads_as_the_clocks_of_its_zone(zone: str, instants: list[datetime]) -> None:
    given_utc = np.array([instant.replace(tzinfo=None) for instant in instants], "datetime64[us]")
    expected = [instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None) for instant in instants]
    assert local_time(given_utc, zone).tolist() == expected


@pytest.mark.parametrize("zone", ZONES)
def test_the_seconds_around_each_change_of_2013_are_right(zone: str) -> None:
    hours = [
        datetime(2013, 1, 1, tzinfo=UTC).timestamp() + 1800 * n + second for n in range(365 * 48) for second in (-1, 0)
    ]
    instants = np.array([int(hour * 1e6) for hour in hours], np.int64).view("datetime64[us]")
    expected = [datetime.fromtimestamp(hour, ZoneInfo(zone)).replace(tzinfo=None) for hour in hours]
    assert local_time(instants, zone).tolist() == expected


def test_no_instant_stays_none_and_an_unknown_zone_is_an_error() -> None:
    assert np.isnat(local_time(np.array(["NaT"], "datetime64[us]"), "Europe/Berlin")).all()
    with pytest.raises(ZoneInfoNotFoundError):
        local_time(np.array([], "datetime64[us]"), "Europe/Atlantis")
