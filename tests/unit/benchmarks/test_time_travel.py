"""Both versions are read whole, have the same rows and differ in content; a wrong table is no figure."""

from __future__ import annotations

import polars as pl
import pytest

from benchmarks import time_travel
from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.table import scan


@pytest.mark.parametrize("checkpoints", [True, False])
def test_every_version_has_as_many_rows_and_days_of_its_own(tmp_path, checkpoints):
    path = tmp_path / "t"
    time_travel.make_table(path, 12, 3, checkpoints)
    old, newest = (scan(path, version).collect() for version in (6, 12))
    assert old.height == newest.height == 36
    assert not old.sort(pl.all()).equals(newest.sort(pl.all()))
    assert (path / "_delta_log" / "_last_checkpoint").exists() == checkpoints


def test_a_reader_that_loses_rows_is_no_figure(tmp_path):
    with pytest.raises(ThroughlineError, match="found 35 of 36 rows in version 6"):
        time_travel.compare("lossy", lambda path, version: 35, tmp_path, (6, 12), 36, 1)


def test_the_first_read_of_each_version_only_warms(tmp_path):
    read = []
    seconds = time_travel.compare("r", lambda path, version: read.append(version) or 5, tmp_path, (1, 2), 5, 3)
    assert read == [1, 2] * 4
    assert [len(taken) for taken in seconds] == [3, 3]
