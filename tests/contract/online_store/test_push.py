"""Pushed rows are online and offline when the call returns, from the instant they were known and not before."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from tests.contract.online_store.conftest import DAY, HOUR, START, World
from throughline.cli import push as command
from throughline.cli.main import app
from throughline.featurestore import push as pushing
from throughline.featurestore import store
from throughline.featurestore.push import Pusher
from throughline.foundation.errors import ThroughlineError
from throughline.lakehouse.table import current_version

NOON = START + DAY + HOUR / 2


@pytest.fixture
def filled(world: World) -> World:
    for hour in range(24):
        for place in "ab":
            world.set("kept", place, hour, float(hour))
            world.set("expiring", place, hour, hour)
    world.at(START + DAY).bring()
    return world.at(NOON)


def kept(place: str = "a", value: float = 5.0, **more: Any) -> dict[str, Any]:
    return {"place": place, "text": None, "value": value, **more}


def online(world: World, place: str = "a") -> float | None:
    return world.read((place, 0)).column("value")[0]


def offline(world: World, at: datetime, place: str = "a") -> float | None:
    """What a training row of that instant gets, once what was pushed is pinned."""
    world.register()
    spine = pl.DataFrame({"place": [place], "gate": [0], "at": [at]})
    return store.historical_features(world.settings, world.usecase, spine, "at")["value"][0]


def test_a_pushed_row_is_read_at_once_and_by_training_rows_from_then_on(filled: World) -> None:
    done = filled.push("kept", [kept(value=5.0)])
    assert (done.view, done.rows, str(done.table), done.known_at) == ("kept", 1, "u/features/kept_pushed@0", NOON)
    assert (online(filled, "a"), online(filled, "b")) == (5.0, 23.0)
    assert filled.read(("a", 0)).event_times(0)["kept"] == NOON
    moment = timedelta(microseconds=1)
    assert [offline(filled, at) for at in (NOON - moment, NOON, NOON + DAY)] == [23.0, 5.0, 5.0]
    assert offline(filled, NOON, "b") == 23.0


def test_a_row_pushed_late_is_not_known_before(filled: World) -> None:
    event = START + DAY + HOUR / 4
    filled.push("kept", [kept(event_timestamp=event.isoformat())])
    assert online(filled) == 5.0
    assert filled.read(("a", 0)).event_times(0)["kept"] == event
    assert [offline(filled, at) for at in (event, NOON - timedelta(seconds=1), NOON)] == [23.0, 23.0, 5.0]


def test_a_row_older_than_the_online_one_is_written_offline_only(filled: World) -> None:
    filled.push("kept", [kept(event_timestamp=(START + 2.5 * HOUR).isoformat())])
    assert online(filled) == 23.0
    assert offline(filled, NOON) == 23.0
    assert pl.read_delta(str(filled.settings.table_path("u", "features", "kept_pushed")))["value"].to_list() == [5.0]


def test_an_older_tick_does_not_overwrite_a_pushed_row_and_a_newer_one_does(filled: World) -> None:
    filled.push("kept", [kept()])
    filled.bring()
    assert online(filled) == 5.0
    filled.rewrite(None)
    assert online(filled) == 5.0
    filled.set("kept", "a", 25, 7.0)
    filled.at(NOON + HOUR).bring()
    assert (online(filled), offline(filled, NOON), offline(filled, filled.now)) == (7.0, 5.0, 7.0)


def test_of_a_tick_and_a_pushed_row_of_one_instant_the_pushed_one_counts(filled: World) -> None:
    filled.at(START + 25 * HOUR)
    filled.push("kept", [kept()])
    filled.set("kept", "a", 25, 7.0)
    filled.bring()
    assert (online(filled), offline(filled, filled.now)) == (5.0, 5.0)


def test_the_last_push_counts_also_when_the_data_clock_has_not_moved(filled: World) -> None:
    for value in (5.0, 9.0, 6.0, 6.0):
        filled.push("kept", [kept(value=value), kept("b", value)])
        assert online(filled) == value
    assert (offline(filled, NOON), online(filled)) == (6.0, 6.0)
    assert pl.read_delta(str(filled.settings.table_path("u", "features", "kept_pushed"))).height == 2
    filled.push("kept", [kept(value=1.0), kept(value=2.0)])
    assert (online(filled), offline(filled, NOON)) == (2.0, 2.0)


def test_rows_that_a_crash_kept_offline_are_online_after_the_next_materialisation(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(pushing, "to_rows", lambda *_: (_ for _ in ()).throw(OSError("the power went")))
        with pytest.raises(OSError, match="the power went"):
            filled.push("kept", [kept()])
    assert online(filled) == 23.0
    filled.bring()
    assert online(filled) == 5.0


def test_a_view_is_named_by_itself_and_takes_frames(filled: World) -> None:
    pusher = Pusher(filled.settings, filled.usecase)
    row = {"place": "a", "gate": 0, "count": 8, "event_timestamp": NOON}
    assert pusher.push("expiring", pl.DataFrame([row])).rows == 1
    assert filled.read(("a", 0)).column("count")[0] == 8
    filled.register()  # what is registered meanwhile is taken up
    assert pusher.push("expiring", pl.DataFrame([{**row, "count": 9}])).table.version == 1
    assert filled.read(("a", 0)).column("count")[0] == 9


def test_writers_at_once_lose_nothing(filled: World) -> None:
    """Pushes of several callers, each with a connection of its own, while the store is written whole and by windows."""
    events = [filled.now - n * timedelta(minutes=1) for n in range(12)]

    def pushes(mine: list[datetime]) -> None:
        pusher = Pusher(filled.settings, filled.usecase)
        for event in mine:
            value = float(60 - event.minute)
            pusher.push(
                "kept", pl.DataFrame([kept("b", value, event_timestamp=event)], schema_overrides={"text": pl.String})
            )

    def materialises() -> None:
        for start in (None, START, None):
            filled.rewrite(start)

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(pushes, events[n::3]) for n in range(3)] + [pool.submit(materialises)]
        for each in writing:
            each.result(timeout=60)
    assert pl.read_delta(str(filled.settings.table_path("u", "features", "kept_pushed"))).height == 12
    assert filled.read(("b", 0)).event_times(0)["kept"] == max(events)
    assert online(filled, "b") == offline(filled, NOON, "b") == 60 - max(events).minute


@pytest.mark.parametrize(
    ("view", "rows", "message"),
    [
        ("nowhere", [kept()], "No feature view or source nowhere: there are expiring, kept"),
        ("kept", [], "No row to push to kept"),
        ("kept", [{"place": "a", "value": 1.0, "txt": ""}], "lack text and have unknown txt"),
        ("kept", [kept(place=None)], "has no place"),
        ("kept", [kept(value="many")], "value of a row for kept is no Float64"),
        ("kept", [kept(event_timestamp="2013-03-09T09:00:00")], "event_timestamp of a row for kept is no instant"),
        ("kept", [kept(event_timestamp="soon")], "is no instant"),
        ("kept", [kept(event_timestamp="2013-03-10T09:00:00Z")], "after the data clock"),
        ("kept", [kept(), kept(event_timestamp=NOON.isoformat())], "has no event_timestamp"),
        ("expiring", [{"place": "a", "gate": None, "count": 1}], "has no gate"),
        ("expiring", [{"place": "a", "gate": 0, "count": 10**30}], "count of a row for expiring is no Int64"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(
    filled: World, view: str, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ThroughlineError, match=message) as refused:
        filled.push(view, rows)
    assert "\n" not in str(refused.value)
    assert online(filled) == 23.0
    assert current_version(filled.settings.table_path("u", "features", f"{view}_pushed")) is None


def test_before_anything_is_registered_the_error_names_the_command(world: World) -> None:
    with pytest.raises(ThroughlineError, match="run `throughline run` first"):
        world.push("kept", [kept()])


def test_pushed_rows_have_the_columns_of_every_table(filled: World) -> None:
    filled.push("kept", [kept()])
    (row,) = pl.read_delta(str(filled.settings.table_path("u", "features", "kept_pushed"))).to_dicts()
    assert (row["event_timestamp"], row["available_at"], str(row["day"])) == (NOON, NOON, "2013-03-10")
    assert row["ingestion_run_id"].startswith("push-")


def test_from_the_command_line(filled: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_settings", lambda: filled.settings)
    monkeypatch.setattr(command, "get_usecase", lambda _: filled.usecase)
    body = tmp_path / "rows.json"
    body.write_text(json.dumps({"rows": [kept(), kept("b", 6.0)]}))
    done = CliRunner().invoke(app, ["push", "u", "kept", "--json-body", str(body), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "usecase": "u",
        "view": "kept",
        "rows": 2,
        "table": "u/features/kept_pushed@0",
        "known_at": NOON.astimezone(UTC).isoformat(),
    }
    assert (online(filled, "a"), online(filled, "b")) == (5.0, 6.0)
    body.write_text("[1]")
    assert isinstance(
        CliRunner().invoke(app, ["push", "u", "kept", "--json-body", str(body)]).exception, ThroughlineError
    )
