"""Whatever windows are written, the online store is as if it had been written whole."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
import redis
from deltalake import DeltaTable
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.contract.online_store.conftest import DAY, HOUR, PLACES, START, World, make_world
from throughline.featurestore import online_stores
from throughline.featurestore.materialise import materialise_until
from throughline.lakehouse.table import replace_all, replace_days

VIEWS = ("kept", "expiring")


def agrees(world: World) -> None:
    for view in VIEWS:
        assert world.online(view) == world.expected(view, world.now), view


def filled(world: World, days: int = 3) -> World:
    for view in VIEWS:
        for place in PLACES:
            for hour in range(0, 24 * days, 2):
                world.set(view, place, hour, hour)
    world.at(START + days * DAY).bring()
    agrees(world)
    return world


def test_the_first_time_is_whole_and_a_new_day_is_a_window(world: World) -> None:
    world.set("kept", "a", 1, 1.0)
    world.set("expiring", "a", 1, 1.0)
    first = world.at(START + DAY).bring()
    assert [window.start for window in first.values()] == [None, None]
    world.set("kept", "a", 30, 2.0)
    world.set("kept", "b", 31, 3.0)
    second = world.at(START + 2 * DAY).bring()
    assert [window.start for window in second.values()] == [START + DAY - world.usecase.online.overlap] * 2
    agrees(world)


@pytest.mark.parametrize(
    ("hours", "value", "whole"),
    [
        pytest.param(71.5, 9.0, False, id="a late row within the overlap"),
        pytest.param(70, 9.0, False, id="a corrected row within the overlap"),
        pytest.param(31, 9.0, True, id="a late row before the window"),
        pytest.param(30, 9.0, True, id="a corrected row before the window"),
        pytest.param(70, None, True, id="a removed row"),
        pytest.param(30, None, True, id="an old removed row"),
    ],
)
def test_late_corrected_and_removed_rows(world: World, hours: float, value: float | None, whole: bool) -> None:
    filled(world).set("kept", "a", hours, value)
    windows = world.at(START + 3 * DAY + HOUR).bring()
    assert (windows["kept"].start is None) == whole, windows["kept"]
    assert windows["expiring"].start is not None
    agrees(world)


def test_removed_newest_rows_of_an_entity_are_removed_online(world: World) -> None:
    filled(world)
    for hour in range(0, 72, 2):
        world.set("kept", "c", hour, None)
    world.at(START + 3 * DAY + HOUR).bring()
    assert ("c", None) not in world.online("kept")
    agrees(world)


def written_again(world: World) -> DeltaTable:
    """The first of the days, in new files with the same content."""
    path = world.settings.table_path("u", "features", "kept")
    held = pl.read_delta(str(path))
    first = held["day"].min()
    replace_days(path, held.filter(pl.col("day") == first), first, first)
    return DeltaTable(str(path))


def test_rows_written_again_as_they_were_are_no_change(world: World) -> None:
    filled(world)
    written_again(world)
    assert world.at(START + 3 * DAY + HOUR).bring()["kept"].start is not None
    agrees(world)


def test_a_rewritten_table_is_written_whole_without_a_comparison(world: World) -> None:
    """To compare all of it costs more than to write what it holds."""
    filled(world).write(rewrite=True)
    windows = world.at(START + 3 * DAY + HOUR).bring()
    assert windows["kept"].reason == "whole: the changes in its history are unknown"
    agrees(world)


def test_a_version_that_is_gone_is_followed_by_a_whole_one(world: World) -> None:
    filled(world)
    written_again(world).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert world.at(START + 4 * DAY).bring()["kept"].start is None
    agrees(world)


def test_a_changed_definition_is_followed_by_a_whole_one(world: World) -> None:
    filled(world)
    path = world.settings.table_path("u", "features", "kept")
    replace_all(path, pl.read_delta(str(path)).rename({"text": "label"}))
    world.renamed = True
    world.register()
    windows = materialise_until(world.settings, world.usecase, world.now)[1]
    assert windows["kept"].reason == "whole: the definition changed"
    assert windows["expiring"].start is not None
    assert {frozenset(values) for _, values in world.online("kept").values()} == {frozenset({"label", "value"})}


def test_a_store_that_lost_everything_is_written_whole(world: World) -> None:
    filled(world)
    if world.settings.online_store is None:
        for file in (world.settings.feast_home / "u").glob("online.db*"):
            file.unlink()
        world.register()
    else:
        redis.Redis.from_url(world.settings.online_store.get_secret_value()).flushall()
    assert world.online("kept") == {}
    assert all(window.start is None for window in world.bring().values())
    agrees(world)


def test_a_write_that_was_cut_short_is_followed_by_a_whole_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(world).set("kept", "a", 80, 1.0)
    world.at(START + 4 * DAY).write()
    world.register()
    on_redis = world.settings.online_store is not None
    kind = online_stores.NewestRedisOnlineStore if on_redis else online_stores.NewestSqliteOnlineStore
    with monkeypatch.context() as broken:
        broken.setattr(kind, "online_write_batch", lambda *_: (_ for _ in ()).throw(OSError("the power went")))
        with pytest.raises(OSError, match="the power went"):
            world.bring()
    assert world.bring()["kept"].start is None
    agrees(world)


def test_an_older_window_never_hides_a_newer_value(world: World) -> None:
    filled(world)
    for start, end in ((0, 10), (20, 40), (71, 71.5), (-5, 72)):
        world.rewrite(START + start * HOUR, START + end * HOUR)
        agrees(world)


def test_hour_by_hour_each_write_is_a_window(world: World) -> None:
    """As in a replay: each hour's ticks are written when the clock gets there, from versions that hold them already."""
    for view in VIEWS:
        for place in PLACES:
            for hour in range(48):
                world.set(view, place, hour, hour)
    world.at(START + DAY).bring()
    for hour in range(24, 48):
        windows = materialise_until(world.settings, world.usecase, world.at(START + hour * HOUR).now)[1]
        hour_before = START + max(hour - 1, 24) * HOUR
        assert {window.start for window in windows.values()} == {hour_before - world.usecase.online.overlap}
        agrees(world)
    world.set("kept", "a", 50, 1.0)
    windows = world.at(START + 2 * DAY + 3 * HOUR).bring()
    assert windows["kept"].start == START + 47 * HOUR - world.usecase.online.overlap
    agrees(world)


def test_a_removed_row_of_the_last_instant_is_removed_online(world: World) -> None:
    world.set("kept", "a", 72, 1.0)
    filled(world).set("kept", "a", 72, None)
    assert world.at(START + 3 * DAY + HOUR).bring()["kept"].reason == "whole: a row was removed"
    agrees(world)


def test_a_write_without_a_start_replaces_the_view(world: World) -> None:
    filled(world)
    for hour in range(0, 72, 2):
        world.set("kept", "c", hour, None)
    world.write()
    world.register()
    world.rewrite(None)
    agrees(world)


@pytest.mark.parametrize("seed_store", ["sqlite", "redis"])
def test_any_history_of_ticks_pushes_corrections_and_removals_ends_as_written_whole(
    seed_store: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = None if seed_store == "sqlite" else request.getfixturevalue("redis_url")

    @hypothesis_settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.integers(0, 10**6))
    def holds(seed: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            _any_history(make_world(Path(tmp_path_factory.mktemp("w")) / "h", url, patch), random.Random(seed), url)

    holds()


def _any_history(world: World, chance: random.Random, url: str | None) -> None:
    if url:
        redis.Redis.from_url(url).flushall()
    hours = 0.0
    for _ in range(chance.randint(2, 5)):
        for _ in range(chance.randint(0, 12)):
            # mostly around now; some long ago, some still to come
            at = round(max(0.0, hours + chance.choice([-60, -8, -2, -1, 0, 1, 2, 30]) + chance.random()) * 2) / 2
            value = chance.choice([None, *range(9)])
            world.set(chance.choice(VIEWS), chance.choice(PLACES), at, value, chance.choice([0, 0, 7]))
        world.write()
        world.register()
        hours += chance.choice([0, 1, 5, 24, 49])
        world.at(START + hours * HOUR)
        for _ in range(chance.randint(0, 2)):
            pushed(world, chance)
        world.bring()
        agrees(world)
        for _ in range(chance.randint(0, 2)):
            pushed(world, chance)
            # online at once, unless a tick that happened later is there
            agrees(world)


def pushed(world: World, chance: random.Random) -> None:
    event = world.now - chance.choice([0, 0, 1, 3, 40]) * HOUR
    value, place, gate = float(chance.randint(100, 999)), chance.choice(PLACES), chance.choice([0, 7])
    view = chance.choice(VIEWS)
    own = {"text": None, "value": value} if view == "kept" else {"gate": gate, "count": int(value)}
    row = {"place": place, "event_timestamp": event, **own}
    world.push(view, [{**row, "event_timestamp": event.isoformat()}])
    world.pushed[view].append({**row, "available_at": world.now})
