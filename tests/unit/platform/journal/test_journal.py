"""What the journal took is there after a crash, once, and in order."""

from __future__ import annotations

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.journal.journal import Journal


def test_lines_of_a_killed_process_are_found_in_order(tmp_path):
    killed = Journal(tmp_path, segment_lines=2)
    for number in range(5):
        killed.append([str(number).encode()])
    killed._held.close()  # what the kernel does at a kill: the lock goes, nothing is closed in good order

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
    assert journal.size == 2
    journal.close()
    assert [Journal.read(left) for left in Journal(tmp_path).sealed()] == [[b"b"]]


def test_two_processes_do_not_share_a_journal(tmp_path):
    held = Journal(tmp_path)
    with pytest.raises(ThroughlineError, match="in use by another process"):
        Journal(tmp_path)
    held.close()
    Journal(tmp_path).close()
