"""What was confirmed reaches its table: one that fails, or a bad line, does not hold up the others."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.support.disk import file_size_limit
from throughline.foundation.errors import ThroughlineError
from throughline.journal import intake as module
from throughline.journal import journal
from throughline.journal.intake import Intake, counts


class Tables(Intake):
    """Lines `{"table", "id"}` on their way to tables in memory; those in `down` cannot be written."""

    what = "The test"

    def __init__(self, folder: Path) -> None:
        self.down: set[str] = set()
        self.tables: dict[str, list[Any]] = defaultdict(list)
        self.reads = self.attempts = 0
        super().__init__(folder)

    def parse(self, line: bytes) -> tuple[str, Any]:
        self.reads += 1
        read = json.loads(line)
        return read["table"], read["id"]

    def to_rows(self, items: Sequence[Any]) -> pl.DataFrame:
        return pl.DataFrame({"id": items}, schema={"id": pl.Int64})

    def append(self, table: str, rows: pl.DataFrame) -> int:
        self.attempts += 1
        if table in self.down:
            raise RuntimeError(f"the storage of {table} is away\nmore")
        fresh = [id_ for id_ in rows["id"] if id_ not in self.tables[table]]
        self.tables[table] += fresh
        return len(fresh)


def line(table: str, id_: object) -> bytes:
    return json.dumps({"table": table, "id": id_}).encode()


def confirm(intake: Intake, *lines: bytes) -> None:
    asyncio.run(intake.confirm(list(lines)))


def test_a_table_that_cannot_be_written_does_not_hold_up_the_others_and_gets_its_rows_when_it_can(tmp_path):
    intake = Tables(tmp_path)
    intake.down = {"bad"}
    confirm(intake, line("bad", 1), line("good", 2))
    intake.flush()
    confirm(intake, line("good", 3), line("bad", 4))
    intake.flush()
    assert (intake.tables, intake.pending) == ({"good": [2, 3]}, 4)
    (problem,) = intake.problems()
    assert problem["what"] == "The test of bad cannot be written (the storage of bad is away)."
    assert counts(intake)["failure"] == problem["what"]
    intake.down = set()
    intake.flush()
    assert intake.tables == {"good": [2, 3], "bad": [1, 4]}
    assert (intake.pending, intake.problems(), intake.duplicates) == (0, [], 0)


def test_rows_of_a_table_that_could_not_be_written_are_written_by_the_next_start(tmp_path):
    before = Tables(tmp_path)
    before.down = {"bad"}
    confirm(before, line("bad", 1), line("good", 2), b"{")
    before.close()
    after = Tables(tmp_path)
    after.close()
    assert after.tables == {"bad": [1], "good": [2]}
    assert (after.pending, after.set_aside) == (0, 1)


def test_a_table_that_fails_is_tried_less_and_less_often_and_its_backlog_once_a_time(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    intake = Tables(tmp_path)
    intake.down = {"bad"}
    for id_ in range(20):
        confirm(intake, line("bad", id_))
        intake.flush(now=False)
    assert (intake.attempts, intake.reads) == (1, 20)  # each segment is read for the other tables, and then left
    for _ in range(600):
        now += 1
        intake.flush(now=False)
    assert intake.attempts < 30
    assert intake.reads < 60
    intake.down = set()
    now += module.SLOWEST_RETRY_S
    intake.flush(now=False)
    assert intake.tables["bad"] == list(range(20))


@pytest.mark.parametrize("bad", [b"", b"{", b"[1]", b'{"table": "t"}', b"\xff", b'{"table": "t", "id": "x"}', bytes(9)])
def test_a_line_that_can_never_be_written_is_set_aside_with_its_reason(tmp_path, bad):
    """Half a line after a power loss, a line of an older schema, a value that no row can hold."""
    intake = Tables(tmp_path)
    confirm(intake, line("t", 1), bad, line("t", 2))
    intake.flush()
    assert intake.tables["t"] == [1, 2]
    assert (intake.pending, intake.set_aside, intake.problems()) == (0, 1, [])
    (kept,) = [json.loads(each) for each in (tmp_path / "set-aside.jsonl").read_text().splitlines()]
    assert kept["line"] == bad.decode(errors="replace")
    assert kept["reason"].startswith("cannot be")
    intake.close()
    assert Tables(tmp_path).set_aside == 1


def test_lines_are_not_lost_while_they_cannot_be_set_aside(tmp_path):
    intake = Tables(tmp_path)
    confirm(intake, b"{", line("t", 1))
    with file_size_limit(10):
        intake.flush()
    assert (intake.tables["t"], intake.pending) == ([1], 2)
    assert "the journal" in intake.problems()[0]["what"]
    intake.flush()
    assert (intake.pending, intake.set_aside, intake.problems(), intake.duplicates) == (0, 1, [], 0)


def test_on_a_full_disk_nothing_is_confirmed_and_it_goes_on_when_there_is_space(tmp_path):
    intake = Tables(tmp_path)
    confirm(intake, line("t", 1))
    for _ in range(3):
        with file_size_limit(40), pytest.raises(ThroughlineError, match=r"journal cannot be written.*free disk space"):
            confirm(intake, line("t", 2), line("t", 3))
    confirm(intake, line("t", 4))
    intake.flush()
    assert (intake.tables["t"], intake.pending, intake.set_aside) == ([1, 4], 0, 0)


def test_an_unexpected_error_reaches_every_caller_and_does_not_end_the_intake(tmp_path, monkeypatch):
    async def scenario() -> list[object]:
        intake = Tables(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(journal.Journal, "append", lambda *_, **__: 1 / 0)
            refused = await asyncio.gather(*(intake.confirm([line("t", n)]) for n in range(3)), return_exceptions=True)
        await intake.confirm([line("t", 9)])
        intake.close()
        assert intake.tables["t"] == [9]
        return refused

    assert [type(each) for each in asyncio.run(scenario())] == [ThroughlineError] * 3


def test_a_caller_that_goes_away_does_not_take_the_confirmation_of_others_with_it(tmp_path):
    async def scenario() -> None:
        intake = Tables(tmp_path)
        first = asyncio.create_task(intake.confirm([line("t", 1)]))
        await asyncio.sleep(0)
        second = asyncio.create_task(intake.confirm([line("t", 2)]))
        first.cancel()
        await asyncio.wait_for(second, timeout=20)
        intake.close()
        assert 2 in intake.tables["t"]

    asyncio.run(scenario())


def test_the_writer_survives_any_exception_and_its_end_is_reported(tmp_path, monkeypatch):
    async def scenario() -> None:
        monkeypatch.setattr(module, "BATCH_S", 0.01)
        intake = Tables(tmp_path)
        intake.start()
        with monkeypatch.context() as patch:
            patch.setattr(intake, "flush", lambda now: 1 / 0)
            await intake.confirm([line("t", 1)])
            while not intake.problems():
                await asyncio.sleep(0.01)
        while intake.pending:
            await asyncio.sleep(0.01)
        assert (intake.tables["t"], intake.broken) == ([1], None)
        assert intake._writer is not None
        intake._writer.cancel()
        while intake.broken is None:
            await asyncio.sleep(0.01)
        assert "the writer ended" in intake.problems()[0]["what"]
        await intake.stop()

    asyncio.run(scenario())


def test_a_writer_that_hangs_is_reported(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    intake = Tables(tmp_path)
    confirm(intake, line("t", 1))
    assert intake.broken is None
    now += 2 * module.STUCK_S
    assert intake.broken is not None
    intake.flush()
    assert intake.broken is None
