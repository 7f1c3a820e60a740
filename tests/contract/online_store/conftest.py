"""A small feature store of its own, on both online stores: SQLite, and a real Redis started here."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from feast import Entity, FeatureService, FeatureView, Field
from feast.types import Float64, Int64, String
from feast.value_type import ValueType

from tests.conftest import needs
from throughline.featurestore import store
from throughline.featurestore.layout import pin_sources
from throughline.featurestore.materialise import materialise_until, online_writer
from throughline.featurestore.online import FeatureReader
from throughline.featurestore.push import Pushed, Pusher
from throughline.featurestore.windows import Window
from throughline.foundation.clock import data_clock
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import current_version, replace_days
from throughline.services.ports import take_ports
from throughline.usecase import RequestField, UseCase, get_usecase

START = datetime(2013, 3, 9, 5, tzinfo=UTC)  # midnight in New York; the clocks change the night after
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TIME = pl.Datetime("us", "UTC")
DEFINITIONS = "online_store_definitions"
PLACES = ("a", "b", "c")
TTL = 12 * HOUR


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needs("redis-server")
    folder = tmp_path_factory.mktemp("redis")
    port = take_ports(1)
    options = ["--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--requirepass", "s3cret"]
    with subprocess.Popen(["redis-server", *map(str, options)], stdout=subprocess.DEVNULL) as server:
        try:
            url = f"redis://:s3cret@127.0.0.1:{port}/0"
            _answers(url)
            yield url
        finally:
            server.terminate()


def _answers(url: str) -> None:
    import redis

    for _ in range(100):
        try:
            redis.Redis.from_url(url).ping()
            return
        except redis.exceptions.ConnectionError:
            time.sleep(0.05)
    pytest.fail("redis-server did not answer within 5 s")


@pytest.fixture(params=["sqlite", "redis"])
def online_url(request: pytest.FixtureRequest) -> str | None:
    """What `Settings.online_store` is set to."""
    if request.param == "sqlite":
        return None
    import redis

    url = request.getfixturevalue("redis_url")
    redis.Redis.from_url(url).flushall()
    return url


def build(source: Any, renamed: bool = False) -> list[Any]:
    place = Entity(name="place", join_keys=["place"], value_type=ValueType.STRING)
    gate = Entity(name="gate", join_keys=["gate"], value_type=ValueType.INT64)
    kept = FeatureView(
        name="kept",
        entities=[place],
        schema=[Field(name="label" if renamed else "text", dtype=String), Field(name="value", dtype=Float64)],
        source=source("kept"),
    )
    expiring = FeatureView(
        name="expiring",
        entities=[place, gate],
        schema=[Field(name="count", dtype=Int64)],
        source=source("expiring"),
        ttl=TTL,
    )
    return [place, gate, kept, expiring, FeatureService(name="s", features=[kept, expiring])]


@dataclass
class World:
    """A home with two feature tables, their rows, and the oracle of what must be online."""

    settings: Settings
    usecase: UseCase
    rows: dict[str, dict[Any, dict[str, Any]]] = field(default_factory=lambda: {"kept": {}, "expiring": {}})
    pushed: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"kept": [], "expiring": []})
    renamed: bool = False

    @property
    def now(self) -> datetime:
        return data_clock(self.settings, START).now()

    def at(self, instant: datetime) -> World:
        data_clock(self.settings, START).advance_to(instant)
        return self

    def set(self, view: str, place: str, hours: float, value: float | None, gate: int = 0) -> None:
        """A tick, in place of one that was there; without a value there is none any more."""
        at, key = START + hours * HOUR, (place, gate, hours)
        self.rows[view].pop(key, None)
        if value is not None:
            row = {"place": place, "event_timestamp": at, "available_at": at}
            own = {"text": f"t{value}", "value": value} if view == "kept" else {"gate": gate, "count": int(value)}
            self.rows[view][key] = {**row, **own}

    def write(self, days: set[date] | None = None, rewrite: bool = False) -> None:
        """Write the tables by the days whose rows differ; all days with `rewrite`."""
        for view, rows in self.rows.items():
            path = self.settings.table_path(self.usecase.name, "features", view)
            frame = self._frame(view, list(rows.values()))
            version = current_version(path)
            if version is None:
                replace_days(path, frame, date(2013, 3, 1), date(2013, 4, 1))
                continue
            held = pl.read_delta(str(path), version=version)
            for day in sorted({*frame["day"], *held["day"]}):
                ours, theirs = (each.filter(pl.col("day") == day) for each in (frame, held))
                if rewrite or not ours.sort(ours.columns).equals(theirs.select(ours.columns).sort(ours.columns)):
                    replace_days(path, ours, day, day)

    def _frame(self, view: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
        own = {"text": pl.String, "value": pl.Float64} if view == "kept" else {"gate": pl.Int64, "count": pl.Int64}
        schema = {"place": pl.String, "event_timestamp": TIME, "available_at": TIME, **own}
        day = pl.col("event_timestamp").dt.convert_time_zone("America/New_York").dt.date()
        return pl.DataFrame(rows, schema=schema).with_columns(day.alias("day"))

    def register(self) -> None:
        pins = pin_sources(self.settings, self.usecase, ["kept", "expiring"])
        store.register(self.settings, self.usecase, pins)

    def bring(self) -> dict[str, Window]:
        """Write, register, and bring online at the data clock."""
        self.write()
        self.register()
        return materialise_until(self.settings, self.usecase, self.now)[1]

    def rewrite(self, start: datetime | None, end: datetime | None = None) -> None:
        """Write a window of every view, up to the data clock or `end`, without its state."""
        with online_writer(self.settings, self.usecase) as writer:
            for view in writer.views:
                writer.write(view, start, end or self.now)

    def expected(self, view: str, at: datetime) -> dict[Any, tuple[datetime, dict[str, Any]]]:
        """By entity the row that counts at `at`: brute force over ticks and pushed rows."""
        best: dict[Any, tuple[Any, dict[str, Any]]] = {}
        ticks = [(row["event_timestamp"], START - DAY, n, row) for n, row in enumerate(self.rows[view].values())]
        pushes = [(row["event_timestamp"], row["available_at"], n, row) for n, row in enumerate(self.pushed[view])]
        for event, known, place, row in [*ticks, *pushes]:
            if max(event, known) <= at:
                entity, rank = (row["place"], row.get("gate")), (event, known, place)
                best[entity] = max(best.get(entity, (rank, row)), (rank, row), key=lambda one: one[0])
        names = ["text", "value"] if view == "kept" else ["count"]
        return {entity: (rank[0], {name: row[name] for name in names}) for entity, (rank, row) in best.items()}

    def online(self, view: str) -> dict[Any, tuple[datetime, dict[str, Any]]]:
        """By entity the row that the online store holds."""
        with online_writer(self.settings, self.usecase) as writer:
            table = next(each for each in writer.views if each.name == view)
            keys = writer.online.entity_keys(writer.config, table)
            read = writer.online.online_read(writer.config, table, keys) if keys else []
        found = {}
        for key, (event, values) in zip(keys, read, strict=True):
            keyed = dict(zip(key.join_keys, key.entity_values, strict=True))
            entity = (keyed["place"].string_val, keyed["gate"].int64_val if "gate" in keyed else None)
            plain = {n: getattr(v, v.WhichOneof("val")) if v.WhichOneof("val") else None for n, v in values.items()}
            found[entity] = (event, {n: v for n, v in plain.items() if not n.startswith("_ts:")})
        return found

    def push(self, view: str, rows: Any) -> Pushed:
        return Pusher(self.settings, self.usecase).push(view, rows)

    def requests(self, *entities: tuple[str, int]) -> dict[str, list[Any]]:
        places, gates = zip(*entities, strict=True)
        return {"place": list(places), "gate": list(gates)}

    def read(self, *entities: tuple[str, int], at: datetime | None = None) -> Any:
        return FeatureReader(self.settings, self.usecase).read(self.requests(*entities), at)


@pytest.fixture
def world(online_url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path / "home", online_url, monkeypatch)


def make_world(home: Path, online_url: str | None, monkeypatch: pytest.MonkeyPatch) -> World:
    settings = load_settings(home=home, online_store=online_url)
    declared = get_usecase("flight_delay")
    module = ModuleType(DEFINITIONS)
    features = declared.features.model_copy(
        update={"definitions": DEFINITIONS, "request_features": f"{DEFINITIONS}:derive", "service": "s"}
    )
    usecase = declared.model_copy(
        update={
            "name": "u",
            "features": features,
            "entities": {"place": "place", "gate": "gate"},
            "request": {"place": RequestField(type="string"), "gate": RequestField(type="integer")},
        }
    )
    world = World(settings, usecase)
    module.build = lambda source: build(source, world.renamed)
    module.derive = lambda fields: {}
    monkeypatch.setitem(sys.modules, DEFINITIONS, module)
    world.at(START)
    return world
