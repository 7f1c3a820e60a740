"""A line appended to the journal is there after a crash, once, and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.disk import file_size_limit
from throughline.foundation.errors import ThroughlineError
from throughline.journal import journal
from throughline.journal.journal import Journal


def test_lines_of_a_killed_process_are_found_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SEGMENT_LINES", 2)
    killed = Journal(tmp_path)
    for number in range(5):
        killed.append([str(number).encode()])
    killed._held.close()  # as at a kill: the lock is released and nothing else is closed

    after = Journal(tmp_path)
    after.append([b"5"])
    lines = [line for segment in after.sealed() for line in Journal.read(segment)]
    assert lines == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "000000000001.jsonl").write_bytes(b"whole\nha")
    (segment,) = Journal(tmp_path).sealed()
    assert Journal.read(segment) == [b"whole"]


def test_a_removed_segment_does_not_come_back(tmp_path):
    journal = Journal(tmp_path)
    journal.append([b"a"])
    (segment,) = journal.sealed()
    journal.append([b"b"])
    journal.remove(segment)
    journal.close()
    assert [Journal.read(left) for left in Journal(tmp_path).sealed()] == [[b"b"]]


def test_two_processes_do_not_share_a_journal(tmp_path):
    held = Journal(tmp_path)
    with pytest.raises(ThroughlineError, match="in use by another process"):
        Journal(tmp_path)
    held.close()
    Journal(tmp_path).close()


def contents(journal: Journal) -> list[list[bytes]]:
    return [Journal.read(segment) for segment in journal.sealed()]


def test_a_segment_is_sealed_once_it_is_full_whatever_the_sizes_of_the_appends(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SEGMENT_LINES", 3)
    written = Journal(tmp_path / "deep" / "down")
    for lines in ([b"a"], [b"b"], [b"c"], [b"d", b"e"], [b"f", b"g"], [b"h"]):
        written.append(lines)
    assert contents(written) == [[b"a", b"b", b"c"], [b"d", b"e", b"f", b"g"], [b"h"]]
    assert [segment.stem for segment in written.sealed()] == ["000000000001", "000000000002", "000000000003"]


def test_a_new_process_numbers_its_segments_after_those_it_found(tmp_path):
    first = Journal(tmp_path)
    first.append([b"a"])
    first.close()
    second = Journal(tmp_path)
    second.append([b"b"])
    assert [segment.stem for segment in second.sealed()] == ["000000000001", "000000000002"]


@given(
    appends=st.lists(
        st.tuples(
            st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ")), max_size=4),
            st.integers(0, 120),
        ),
        max_size=12,
    )
)
def test_on_a_full_disk_an_append_is_whole_or_refused_and_the_next_ones_are_whole(tmp_path_factory, appends):
    """A real limit of the size of files: a write stops in the middle of a line, and the next ones write nothing."""
    written, kept = Journal(tmp_path_factory.mktemp("journal")), []
    for lines, limit in appends:
        with file_size_limit(limit):
            try:
                written.append(lines, sync=True)
            except OSError:
                continue
        kept += lines
    assert [line for segment in written.sealed() for line in Journal.read(segment)] == kept
    written.append([b"after"])
    assert contents(written)[-1] == [b"after"]
    written.close()


def test_appends_that_a_full_disk_refuses_leave_no_files(tmp_path):
    written = Journal(tmp_path)
    for _ in range(5):
        with file_size_limit(3), pytest.raises(OSError, match=r"part|large"):
            written.append([b"refused"])
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.parametrize("sync", [True, False])
def test_only_an_append_with_sync_waits_for_the_disk(tmp_path, monkeypatch, sync):
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    journal = Journal(tmp_path)
    journal.append([b"a"], sync=sync)
    assert synced == ([journal._open.fileno()] if sync else [])
