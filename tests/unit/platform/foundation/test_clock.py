"""The data clock never goes back, is the same in every process, and accepts no instant without a zone."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.foundation.clock import ReplayClock, WallClock, data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings

START = datetime(2013, 4, 1, 4, tzinfo=UTC)


@given(moves=st.lists(st.timedeltas(min_value=timedelta(days=-2), max_value=timedelta(days=2)), max_size=12))
def test_the_data_clock_never_goes_back_in_any_process(moves: list[timedelta]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, highest = Path(folder) / "clock.json", START
        for move in moves:
            clock, wanted = ReplayClock(path, START), START + move
            if wanted < highest:
                with pytest.raises(ThroughlineError, match="does not go back"):
                    clock.advance_to(wanted)
            else:
                assert clock.advance_to(wanted) == wanted
                highest = wanted
            assert clock.now() == ReplayClock(path, START).now() == highest


def test_the_data_clock_is_at_the_start_until_it_is_moved_and_leaves_no_file(tmp_path: Path) -> None:
    assert ReplayClock(tmp_path / "clock.json", START).now() == START
    assert not list(tmp_path.iterdir())


def test_the_data_clock_stays_when_it_is_opened_again_with_another_start(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "clock.json"
    ReplayClock(path, START).advance_to(START + timedelta(hours=1))
    assert ReplayClock(path, START + timedelta(days=9)).now() == START + timedelta(hours=1)
    assert [file.name for file in path.parent.iterdir()] == ["clock.json"]


def test_an_instant_in_another_zone_is_the_same_instant(tmp_path: Path) -> None:
    clock = ReplayClock(tmp_path / "clock.json", START)
    east = timezone(timedelta(hours=5, minutes=30))
    clock.advance_to((START + timedelta(hours=1)).astimezone(east))
    assert clock.now() == START + timedelta(hours=1)
    assert clock.now().utcoffset() == timedelta(0)


def test_an_instant_without_a_zone_is_refused(tmp_path: Path) -> None:
    naive = datetime(2014, 1, 1)
    with pytest.raises(ThroughlineError, match="no time zone"):
        ReplayClock(tmp_path / "clock.json", naive)
    with pytest.raises(ThroughlineError, match="no time zone"):
        ReplayClock(tmp_path / "clock.json", START).advance_to(naive)
    assert not list(tmp_path.iterdir())


def test_a_move_that_breaks_off_leaves_the_old_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ReplayClock(tmp_path / "clock.json", START)
    clock.advance_to(START)

    def broken(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", broken)
        with pytest.raises(OSError, match="no space"):
            clock.advance_to(START + timedelta(days=1))
    assert clock.now() == START


def test_production_follows_the_wall_clock_and_a_replay_its_home(tmp_path: Path) -> None:
    assert isinstance(data_clock(Settings(home=tmp_path, clock="wall"), START), WallClock)
    assert abs(WallClock().now() - datetime.now(UTC)) < timedelta(minutes=1)
    here = data_clock(Settings(home=tmp_path / "here"), START)
    here.advance_to(START + timedelta(days=1))
    assert data_clock(Settings(home=tmp_path / "there"), START).now() == START
