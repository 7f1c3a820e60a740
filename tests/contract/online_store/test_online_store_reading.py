"""Reading online: the ttl as offline, which store by setting, and the error when it does not answer."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from tests.contract.online_store.conftest import DAY, HOUR, START, TTL, World, make_world
from throughline.featurestore import store
from throughline.featurestore.materialise import materialise_until
from throughline.foundation.errors import ThroughlineError

MOMENT = timedelta(microseconds=1)


@pytest.mark.parametrize("age", [timedelta(0), TTL - MOMENT, TTL, TTL + MOMENT, 2 * TTL])
def test_a_value_expires_online_at_the_instant_it_does_offline(world: World, age: timedelta) -> None:
    world.set("expiring", "a", 3, 4)
    world.set("kept", "a", 3, 4.0)
    at = START + 3 * HOUR + age
    world.at(at).bring()
    spine = pl.DataFrame({"place": ["a"], "gate": [0], "at": [at]})
    offline = store.historical_features(world.settings, world.usecase, spine, "at")
    read = world.read(("a", 0))
    assert read.column("count") == offline["count"].to_list() == [4 if age <= TTL else None]
    assert ("expired:expiring" in read.flags(0)) == (age > TTL)
    assert read.event_times(0)["expiring"] == (START + 3 * HOUR if age <= TTL else None)
    # without a ttl nothing expires; and whoever had a row is not unknown
    assert read.column("value") == offline["value"].to_list() == [4.0]
    assert not [flag for flag in read.flags(0) if flag.startswith("unknown")]


def test_the_age_of_a_pushed_row_counts_from_its_event_time(world: World) -> None:
    world.set("expiring", "a", 0, 1)
    world.set("kept", "a", 0, 1.0)
    world.at(START + DAY).bring()
    event = START + DAY - 2 * HOUR
    world.push("expiring", [{"place": "a", "gate": 0, "count": 2, "event_timestamp": event}])
    world.register()
    for at in (event + TTL, event + TTL + MOMENT):
        spine = pl.DataFrame({"place": ["a"], "gate": [0], "at": [at]})
        offline = store.historical_features(world.settings, world.usecase, spine, "at")["count"].to_list()
        assert world.read(("a", 0), at=at).column("count") == offline == [2 if at == event + TTL else None]


def test_instants_are_kept_to_the_microsecond_in_any_time_zone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In New York there is no local 02:30 on this day; Feast's SQLite store keeps its times as local seconds."""
    import time

    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        event = START + DAY - 2.5 * HOUR + 7 * MOMENT  # 02:30:00.000007 UTC on 10 March
        world.set("kept", "a", 0, 1.0)
        world.set("expiring", "a", 0, 1)
        world.at(event).bring()
        world.push("kept", [{"place": "a", "text": None, "value": 2.0}])
        assert world.read(("a", 0)).event_times(0)["kept"] == event
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_password_is_in_no_text(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path / "home", redis_url, monkeypatch)
    world.set("kept", "a", 1, 1.0)
    world.set("expiring", "a", 1, 1)
    world.at(START + DAY).bring()
    opened = store.open_store(world.settings, world.usecase)
    texts = [repr(world.settings), str(world.settings), world.settings.model_dump_json(), repr(opened.config)]
    texts += [repr(opened.config.online_store), opened.config.model_dump_json(), repr(world.usecase)]
    assert not [text for text in texts if "s3cret" in text]
    written = [file for file in world.settings.home.rglob("*") if file.is_file() and b"s3cret" in file.read_bytes()]
    assert not written


def test_a_redis_that_does_not_answer_or_refuses_is_one_line(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("redis://:s3cret@127.0.0.1:1/0", redis_url.replace("s3cret", "wr0ng")):
        world = make_world(tmp_path / url[-6:-2].replace("/", "_"), url, monkeypatch)
        world.set("kept", "a", 1, 1.0)
        world.set("expiring", "a", 1, 1)
        world.write()
        world.register()
        with pytest.raises(
            ThroughlineError, match=r"The online store does not answer .*THROUGHLINE_ONLINE_STORE"
        ) as refused:
            materialise_until(world.settings, world.usecase, world.now)
        assert not {"\n", "s3cret", "wr0ng"} & set(str(refused.value).replace(".", " ").split(" "))


def test_two_projects_and_two_databases_are_separate(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    redis.Redis.from_url(redis_url).flushall()
    one = make_world(tmp_path / "one", redis_url, monkeypatch)
    one.set("kept", "a", 1, 1.0)
    one.set("expiring", "a", 1, 1)
    one.at(START + DAY).bring()
    other = make_world(tmp_path / "other", redis_url.removesuffix("0") + "1", monkeypatch)
    other.set("kept", "a", 1, 2.0)
    other.set("expiring", "a", 1, 2)
    other.at(START + DAY).bring()
    assert [world.read(("a", 0)).column("value")[0] for world in (one, other)] == [1.0, 2.0]
    alike = make_world(tmp_path / "alike", redis_url, monkeypatch)
    alike.usecase = alike.usecase.model_copy(update={"name": "xu"})  # a name that ends like the other's
    alike.set("kept", "b", 1, 3.0)
    alike.set("expiring", "b", 1, 3)
    alike.at(START + DAY).bring()
    assert [set(world.online("kept")) for world in (one, alike)] == [{("a", None)}, {("b", None)}]
    one.set("kept", "a", 1, None)
    one.bring()
    assert [set(world.online("kept")) for world in (one, alike)] == [set(), {("b", None)}]
