"""The guarantees of a table, in a folder and on a real S3 server, with real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.support import s3_server, tables
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import PROJECT_ROOT, Settings, load_settings
from throughline.lakehouse import delta
from throughline.lakehouse.append import AppendOnce
from throughline.lakehouse.delta import storage_options
from throughline.lakehouse.maintenance import maintain
from throughline.lakehouse.table import current_version, history, pin, read, replace_all, replace_days, scan

FIRST = date(2013, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(10)]
PER_DAY = 400
TABLE = "u/raw/t"
NOW = datetime.now(UTC)


def rows(days: list[date], value: int) -> pl.DataFrame:
    return tables.rows(days, value, PER_DAY)


def replaced(home: Settings, step: int) -> int:
    return replace_days(home.lakehouse / TABLE, rows(DAYS, step), DAYS[0], DAYS[-1])


def batch(step: int) -> pl.DataFrame:
    """Ids that overlap those of the steps before, over several days."""
    number = pl.int_range(step * 300, step * 300 + 900, eager=True).alias("number")
    day = (pl.lit(FIRST) + pl.duration(days=pl.col("number") % 10)).cast(pl.Date)
    return number.to_frame().select(id=pl.format("k{}", "number"), day=day, value=pl.lit(step, pl.Int64))


def appended(home: Settings, step: int) -> int:
    return AppendOnce(home.lakehouse / TABLE, by_day=True).append(batch(step)).height


def after(operation: Callable[..., int], step: int) -> pl.DataFrame:
    """The rows that must be there once all steps up to `step` were done."""
    if operation is replaced:
        return rows(DAYS, step).sort("day", "id")
    steps = pl.concat([batch(n) for n in range(step + 1)])
    return steps.sort("value").unique("id", keep="first").sort("day", "id")


@pytest.fixture(params=["folder", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home whose tables are in a folder, or in a prefix of their own in a bucket."""
    if request.param == "folder":
        return load_settings(home=tmp_path / "home")
    environment = request.getfixturevalue("s3")
    if environment is None:
        pytest.skip(s3_server.MISSING)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings(home=tmp_path / "home", lakehouse_uri=f"s3://lake/{tmp_path.name}")


def test_old_and_new_version_are_read_and_other_days_are_untouched(home: Settings) -> None:
    replaced(home, 0)
    first = pin(home, TABLE)
    for _ in range(2):
        replace_days(home.table_path("u", "raw", "t"), rows(DAYS[:2], 7), DAYS[0], DAYS[1])
    assert read(home, first).collect().sort("day", "id").equals(rows(DAYS, 0).sort("day", "id"))
    now = read(home, pin(home, TABLE)).sort("day", "id").collect()
    assert now.equals(pl.concat([rows(DAYS[:2], 7), rows(DAYS[2:], 0)]).sort("day", "id"))
    assert read(home, pin(home, TABLE)).filter(pl.col("day") == DAYS[1]).select(pl.len()).collect().item() == PER_DAY


def test_a_refused_write_changes_nothing(home: Settings) -> None:
    path = home.lakehouse / TABLE
    replace_days(path, rows(DAYS, 1), DAYS[0], DAYS[-1])
    version = current_version(path)
    for bad, problem in (
        (rows(DAYS[:2], 1), "400 rows for .* lie outside 2013-03-01 to 2013-03-01"),
        (rows(DAYS[:1], 1).with_columns(other=pl.lit(1)), "column other is new"),
        (rows(DAYS[:1], 1).with_columns(pl.col("value") + 0.5), "column value was long and is double"),
    ):
        with pytest.raises(ThroughlineError, match=problem):
            replace_days(path, bad, DAYS[0], DAYS[0])
    assert current_version(path) == version
    replace_days(path, rows(DAYS[:1], 2).with_columns(extra=pl.lit(1)), DAYS[0], DAYS[0], new_columns=True)
    assert scan(path, version + 1).select("value", "extra").unique().collect().height == 2


def test_a_version_that_was_kept_is_read_after_a_vacuum_and_another_is_refused(home: Settings) -> None:
    path = home.lakehouse / TABLE
    for step in (0, 1, 2, 0):
        replaced(home, step)
    assert [commit.operation for commit in history(path)] == ["WRITE"] * 4
    DeltaTable(str(path), storage_options=storage_options(path)).vacuum(
        retention_hours=0, dry_run=False, enforce_retention_duration=False, full=True, keep_versions=[1]
    )
    assert [scan(path, version).select("value").unique().collect().item() for version in (1, 3)] == [1, 0]
    with pytest.raises(ThroughlineError, match=r"t@2 cannot be read: .* vacuumed"):
        read(home, TableReference(TABLE, 2))


def test_a_missing_or_unreachable_table_is_one_line(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_version(home.lakehouse / TABLE) is None
    with pytest.raises(ThroughlineError, match=r"u/raw/t does not exist in .*materialise it"):
        pin(home, TABLE)
    with pytest.raises(ThroughlineError, match=r"u/raw/t is not a Delta table: correct the address") as caught:
        read(home, TableReference(TABLE, 0))
    assert "\n" not in str(caught.value)
    if not str(home.lakehouse).startswith("s3://"):
        return
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(ThroughlineError, match=r"cannot be read .*storage can be reached") as caught:
        pin(home, TABLE)
    assert "\n" not in str(caught.value)
    assert "another-secret" not in str(caught.value)


def test_credentials_are_those_of_the_profile(home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not str(home.lakehouse).startswith("s3://"):
        pytest.skip("a folder needs no credentials")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    wrong = "[default]\naws_access_key_id = unknown\naws_secret_access_key = nothing\n"
    right = f"[lake]\naws_access_key_id = {s3_server.KEY}\naws_secret_access_key = {s3_server.SECRET}\n"
    (tmp_path / "credentials").write_text(wrong + right)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lake")
    replaced(home, 0)
    assert read(home, pin(home, TABLE)).collect().height == len(DAYS) * PER_DAY


# Several writers at once

WRITER = """
import json, sys, time
from pathlib import Path
from tests.contract import test_lakehouse as module
from throughline.lakehouse.delta import TableConflict
from throughline.lakehouse.table import replace_days
from throughline.foundation.settings import load_settings

home, number, task, barrier = load_settings(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
(barrier / str(number)).touch()
while not (barrier / "go").exists():
    time.sleep(0.001)
path = home.lakehouse / module.TABLE
try:
    if task == "append":
        for _ in range(3):
            module.appended(home, number)
    else:
        days = module.DAYS[:1] if task == "same" else module.DAYS[number:number + 1]
        replace_days(path, module.rows(days, number), days[0], days[0])
    print("ok")
except TableConflict as error:
    print("conflict", error)
"""


def together(home: Settings, tmp_path: Path, task: str, writers: int) -> list[str]:
    barrier = tmp_path / "barrier"
    barrier.mkdir()
    given = home.model_dump(mode="json", include={"home", "lakehouse_uri"}, exclude_none=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, json.dumps(given), str(number), task, str(barrier)],
            cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True,
        )
        for number in range(writers)
    ]  # fmt: skip
    while len(list(barrier.iterdir())) < writers:
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    (barrier / "go").touch()
    printed = [process.communicate(timeout=120)[0].strip() for process in started]
    assert all(process.returncode == 0 for process in started)
    return printed


@pytest.mark.parametrize("held", [0, len(DAYS)], ids=["new", "held"])
def test_of_writers_of_the_same_day_one_wins_and_the_others_get_a_conflict(
    home: Settings, tmp_path: Path, held: int
) -> None:
    if held:
        replaced(home, 99)
    printed = together(home, tmp_path, "same", 4)
    won = [number for number, text in enumerate(printed) if text == "ok"]
    lost = [text for text in printed if text != "ok"]
    assert won
    assert all(text.startswith("conflict") and "run it again" in text for text in lost), printed
    now = read(home, pin(home, TABLE)).collect()
    # each write that printed "ok" is in the history, and no other
    assert pin(home, TABLE).version + 1 == len(won) + bool(held)
    day = now.filter(pl.col("day") == DAYS[0])
    assert day["value"].n_unique() == 1
    assert day["value"][0] in won
    assert (day.height, now.height) == (PER_DAY, max(held, 1) * PER_DAY)


def test_a_writer_succeeds_after_maintenance_committed_first(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home.lakehouse / TABLE
    replaced(home, 0)
    second_file = rows(DAYS[:1], 1).to_arrow()  # to be compacted
    write_deltalake(str(path), second_file, mode="append", storage_options=storage_options(path))
    wrote = delta.write_deltalake
    interruptions = iter([lambda: maintain(home, {}, timedelta(0), NOW)])

    def interrupted(*args: Any, **kwargs: Any) -> None:
        next(interruptions, lambda: None)()
        wrote(*args, **kwargs)

    monkeypatch.setattr(delta, "write_deltalake", interrupted)
    replace_days(path, rows(DAYS[:1], 2), DAYS[0], DAYS[0])
    operations = [commit.operation for commit in history(path)]
    assert operations[0] == "WRITE"
    assert "OPTIMIZE" in operations
    day = read(home, pin(home, TABLE)).filter(pl.col("day") == DAYS[0]).collect()
    assert (day.height, day["value"].unique().to_list()) == (PER_DAY, [2])


def test_maintenance_keeps_what_is_pinned(home: Settings) -> None:
    path = home.lakehouse / TABLE
    for step in range(4):
        replaced(home, step)
        replace_days(path, rows(DAYS[:1], step + 100), DAYS[0], DAYS[0])
    replace_all(home.lakehouse / "u/training/dataset", rows(DAYS, 0))
    newest = pin(home, TABLE)
    contents = {version: scan(path, version).sort("day", "id").collect() for version in (1, 3, newest.version)}
    done = {maintained.table: maintained for maintained in maintain(home, {TABLE: [1, 3]}, timedelta(0), NOW)}
    assert done.keys() == {TABLE, "u/training/dataset"}
    assert all(maintained.failure is None for maintained in done.values())
    assert done[TABLE].removed > 0
    for version, content in contents.items():
        assert scan(path, version).sort("day", "id").collect().equals(content)
    assert read(home, pin(home, TABLE)).sort("day", "id").collect().equals(contents[newest.version])
    with pytest.raises(ThroughlineError, match="vacuumed"):
        scan(path, 0)


def test_writers_of_different_days_all_succeed(home: Settings, tmp_path: Path) -> None:
    replaced(home, 99)
    assert together(home, tmp_path, "different", 4) == ["ok"] * 4
    now = read(home, pin(home, TABLE)).group_by("day").agg(pl.col("value").unique(), pl.len()).sort("day").collect()
    assert now["value"].to_list() == [[0], [1], [2], [3], *([[99]] * 6)]
    assert set(now["len"]) == {PER_DAY}


def test_concurrent_appends_of_the_same_ids_lose_no_row_and_double_none(home: Settings, tmp_path: Path) -> None:
    assert together(home, tmp_path, "append", 3) == ["ok"] * 3
    now = read(home, pin(home, TABLE)).collect()
    assert now["id"].is_unique().all()
    assert set(now["id"]) == set(after(appended, 2)["id"])
    sent = pl.concat([batch(number) for number in range(3)])
    assert now.join(sent, on=["id", "day", "value"], how="anti").is_empty()


# A writer that is killed

KILLED = """
import json, sys
from tests.contract import test_lakehouse as module
from throughline.foundation.settings import load_settings

home, step = load_settings(**json.loads(sys.argv[1])), int(sys.argv[3])
while True:
    getattr(module, sys.argv[2])(home, step)
    print(step, flush=True)
    step += 1
"""


@pytest.mark.parametrize("operation", [replaced, appended])
def test_a_writer_killed_at_any_moment_leaves_whole_commits_only(
    home: Settings, operation: Callable[..., int], request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("KILL_SEED", "2013"))
    moments = random.Random(seed)
    kills = 10 if "folder" in request.node.name else 4
    given = home.model_dump(mode="json", include={"home", "lakehouse_uri"}, exclude_none=True)
    operation(home, 0)
    step, seen = 0, []
    for _ in range(kills):
        # restarted with the step that may or may not be complete: repeated, it changes nothing
        command = [sys.executable, "-c", KILLED, json.dumps(given), operation.__name__, str(step)]
        with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(2):  # until it is warm
                writer.stdout.readline()
            begun = time.monotonic()
            step = int(writer.stdout.readline())
            wait = moments.uniform(0, 2 * (time.monotonic() - begun))  # at the pace of this machine
            time.sleep(wait)
            writer.kill()
            step = max([step, *(int(line) for line in writer.stdout)])
        now = read(home, pin(home, TABLE)).sort("day", "id").collect()
        complete = [n for n in (step, step + 1) if now.equals(after(operation, n).select(now.columns))]
        seen.append({"wait_s": round(wait, 3), "acknowledged": step, "found": complete})
        print(json.dumps({"seed": seed, **seen[-1]}))  # noqa: T201
        assert complete, f"killed {wait:.3f} s after an acknowledged step (seed {seed}): {_damage(now)}"
        step = complete[0]
    assert step > kills  # there were steps between the kills
    operation(home, step)
    assert read(home, pin(home, TABLE)).sort("day", "id").collect().equals(after(operation, step).select(now.columns))


def _damage(now: pl.DataFrame) -> Any:
    doubled = now.select(pl.struct("day", "id").is_duplicated().sum()).item()
    return {"rows": now.height, "doubled": doubled, "values": sorted(now["value"].unique())[-5:]}
