"""The guarantees of every kind of source: a module, files here and on S3, a database, rows pushed over HTTP.

Real servers: an S3 gateway, PostgreSQL behind Spark Connect, the collector.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import polars as pl
import pytest

from tests.support import postgres_server, s3_server, shop
from tests.support.postgres_server import Postgres
from throughline import services
from throughline.foundation.clock import ReplayClock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings
from throughline.services.ports import take_ports
from throughline.sources.conform import TYPES
from throughline.sources.declared import source_of
from throughline.sources.source import Source
from throughline.usecase import UseCase

TICK = timedelta(microseconds=1)
SECRET = "s3cret-of-the-database"
KINDS = ["module", "csv", "jsonl", "json array", "parquet", "modified", "s3", "jdbc", "push"]
NOW = datetime(2024, 11, 20, tzinfo=UTC)


@dataclass(frozen=True)
class Delivered:
    """A kind of source that holds some rows, and the settings under which it is read."""

    source: Source
    settings: Settings
    usecase: UseCase

    def read(self, start: datetime | None, end: datetime) -> pl.DataFrame:
        return self.source.read(start, end)


# One way to deliver rows for each kind


def write(path: Path, content: pl.DataFrame, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "csv":
            content.write_csv(path)
        case "jsonl":
            path.write_text("\n".join(json.dumps(row, default=str) for row in content.to_dicts()) + "\n")
        case "json":
            path.write_text(json.dumps(content.to_dicts(), default=str))
        case "parquet":
            content.write_parquet(path)


class Deliverer:
    """Puts rows where a kind of source reads them. A server is started when its kind is first used."""

    def __init__(self, folder: Path, stack: ExitStack, ports: int) -> None:
        self.folder, self._stack, self._ports = folder, stack, ports
        self.own = ExitStack()  # what ends with a test
        self._servers: dict[str, Any] = {}
        self._number = 0

    def __call__(self, kind: str, content: pl.DataFrame, zone: str | None = None) -> Delivered:
        self._number += 1
        home = self.folder / f"{self._number}"
        deliver = getattr(self, f"_{kind.partition(' ')[0]}", None)
        settings = load_settings(home=home / "home", port_base=self._ports)
        columns = {"event_time": "ordered_at", "available_at": "known_at"} | ({"timezone": zone} if zone else {})
        feed, settings = deliver(home, settings, content, columns)
        usecase = shop.declare(home / "usecases", feed, **self._more(kind))
        if kind == "push":
            self._pushed(settings, usecase, content)
        return Delivered(source_of(settings, usecase, "orders"), settings, usecase)

    def _more(self, kind: str) -> dict[str, Any]:
        if kind != "module":
            return {}
        return {"sources": {"module": "shop_of_the_test", "tables": {"orders": shop.table(None)}}}

    def _module(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        module = ModuleType("shop_of_the_test")
        given = shop.as_delivered(content)

        def read(table: str, start: datetime | None, end: datetime) -> pl.DataFrame:
            known = pl.col("available_at") < end
            return given.filter(known if start is None else known & (pl.col("available_at") >= start))

        module.read = read  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
        return None, settings

    def _files(self, home: Path, content: pl.DataFrame, columns: dict[str, str], kind: str) -> dict[str, Any]:
        """Three files, in folders, in no order of time; one that is still being written beside them."""
        for number in range(3):
            write(home / "in" / f"part={number}" / f"orders.{kind}", content.gather_every(3, number), kind)
        (home / "in" / f"_half.{kind}").write_bytes(b"\x00 nothing that anybody can read")
        return {"files": f"{home}/in/**/*.{kind}", **columns}

    def _csv(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        return self._files(home, content, columns, "csv"), settings

    def _jsonl(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        return self._files(home, content, columns, "jsonl"), settings

    def _json(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        return self._files(home, content, columns, "json"), settings

    def _parquet(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        return self._files(home, content, columns, "parquet"), settings

    def _modified(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        """A file for each row, known when it was last modified."""
        for number, row in enumerate(content.iter_slices(1)):
            path = home / "in" / f"{number:03d}.csv"
            write(path, row.drop("known_at"), "csv")
            modified = row["known_at"].dt.timestamp("ns")[0]
            os.utime(path, ns=(modified, modified))
        return {"files": f"{home}/in/*.csv", "event_time": "ordered_at"}, settings

    def _s3(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        buckets = self._server("s3", self._start_s3)
        write(buckets / "lake" / home.name / "a" / "orders.csv", content.head(40), "csv")
        write(buckets / "lake" / home.name / "orders.csv", content.slice(40), "csv")
        return {"files": f"s3://lake/{home.name}/**/*.csv", **columns}, settings

    def _jdbc(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        database, spark = self._server("jdbc", self._start_jdbc)
        kinds = {pl.String: "text", pl.Int64: "bigint", pl.Float64: "numeric(12,2)", pl.Boolean: "boolean"}
        name = f"orders_{home.name}"
        naive = "timezone" in columns
        given = content.with_columns(pl.col(pl.Datetime).cast(pl.String))
        stamp = "timestamp" if naive else "timestamptz"
        described = ", ".join(
            f"{column} {stamp if column in ('ordered_at', 'known_at') else kinds[given.schema[column].base_type()]}"
            for column in given.columns
        )
        values = ", ".join(
            "(" + ", ".join("NULL" if v is None else "'" + str(v).replace("'", "''") + "'" for v in row) + ")"
            for row in given.iter_rows()
        )
        database.run(f"CREATE TABLE {name} ({described}, internal text); INSERT INTO {name} VALUES {values}"
                     .replace("), (", ", 'x'), (").removesuffix(")") + ", 'x')")  # fmt: skip
        reader = load_settings(home=settings.home, spark_remote=spark.spark_url)
        return {"jdbc": f"{database.url}?user=reader", "table": name, **columns}, reader

    def _push(self, home: Path, settings: Settings, content: pl.DataFrame, columns: dict[str, str]) -> Any:
        self._listening = self.own.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        return {"push": "order_id", **columns}, settings.model_copy(update={"collector_url": address})

    def _pushed(self, settings: Settings, usecase: UseCase, content: pl.DataFrame) -> None:
        ReplayClock(settings.home / "clock.json", NOW).advance_to(NOW)
        self.own.enter_context(collector(settings, usecase, self._listening))
        address = f"{settings.url('collector')}/v1/sources/shop/orders"
        for part in content.iter_slices(40):
            body = "\n".join(json.dumps(row, default=lambda at: at.isoformat()) for row in part.to_dicts())
            httpx.post(address, content=body, timeout=30).raise_for_status()

    def _server(self, name: str, start: Callable[[], Any]) -> Any:
        if name not in self._servers:
            self._servers[name] = start()
        return self._servers[name]

    def _start_s3(self) -> Path:
        buckets = self.folder / "buckets"
        address = self._stack.enter_context(s3_server.serve(s3_server.needed(), buckets, ["lake"]))
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in s3_server.environment(address).items():
            patch.setenv(name, value)
        return buckets

    def _start_jdbc(self) -> tuple[Postgres, Settings]:
        if shutil.which("java") is None:
            pytest.skip("Java is not installed: Spark needs it")
        programs = postgres_server.binaries()
        if programs is None or shutil.which("psql") is None:
            pytest.skip("PostgreSQL is not installed (apt install postgresql)")
        database = self._stack.enter_context(postgres_server.serve(programs, "reader", SECRET))
        settings = load_settings(home=self.folder / "spark", port_base=self._ports)
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        # the standard password file of PostgreSQL's driver; the Spark server inherits its address and no password
        passwords = self.folder / "pgpass"
        passwords.write_text(f"127.0.0.1:{database.port}:postgres:reader:{SECRET}\n")
        passwords.chmod(0o600)
        patch.setenv("PGPASSFILE", str(passwords))
        patch.setenv("SHOP_USER", "reader")
        patch.setenv("SHOP_PASSWORD", SECRET)
        services.up(settings, ["spark"])
        self._stack.callback(services.down, settings)
        return database, settings


@contextmanager
def collector(settings: Settings, usecase: UseCase, listening: socket.socket) -> Iterator[None]:
    """A collector of one use case more than the project declares."""
    import uvicorn

    from throughline.events import collector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collector, "load_usecases", lambda: {usecase.name: usecase})
        server = uvicorn.Server(uvicorn.Config(collector.create_app(settings), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def servers(session_home: Path) -> Iterator[Deliverer]:
    with ExitStack() as stack:
        yield Deliverer(session_home / "sources", stack, take_ports())


@pytest.fixture
def deliver(servers: Deliverer) -> Iterator[Deliverer]:
    """As `servers`, with what belongs to one test only, the collector, ended after it."""
    with ExitStack() as servers.own:
        yield servers


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# What holds for every kind


def test_a_window_gives_the_rows_that_became_known_in_it_and_no_others(kind: str, deliver: Deliverer) -> None:
    """Bounds fall on a row's instant, a microsecond beside it, and between rows; a window is [start, end)."""
    orders = shop.rows()
    delivered = deliver(kind, orders)
    known = orders["known_at"]
    bounds = [
        *(shop.BEGAN, known[0], known[0] + TICK, known[10] - TICK, known[10], known[50] + 13 * TICK, known[96]),
        *(known[96] + TICK, known[96] + shop.DAY),
    ]
    parts = []
    for start, end in zip([None, *bounds], bounds, strict=False):
        part = delivered.read(start, end)
        assert part.equals(expected(orders, start, end)), (start, end)
        parts.append(part)
    # adjacent windows give every row, and none twice
    assert pl.concat(parts).equals(expected(orders, None, NOW))
    assert delivered.read(None, NOW).equals(expected(orders, None, NOW))


def test_a_window_without_rows_is_a_typed_frame_without_rows(kind: str, deliver: Deliverer) -> None:
    delivered = deliver(kind, shop.rows(5))
    for start, end in ((None, shop.BEGAN), (shop.BEGAN + 300 * shop.DAY, shop.BEGAN + 301 * shop.DAY)):
        nothing = delivered.read(start, end)
        assert nothing.height == 0
        assert dict(nothing.schema) == SCHEMA


def test_a_source_read_twice_gives_the_same_rows_in_the_same_order(kind: str, deliver: Deliverer) -> None:
    """The digest of a day is of its rows as they stand."""
    many = shop.rows(40).with_columns(known_at=pl.lit(shop.BEGAN + shop.DAY).cast(pl.Datetime("us", "UTC")))
    if kind == "s3":
        many = many.sort("order_id")
    delivered = deliver(kind, many)
    once = delivered.read(None, NOW)
    assert once.height == 40
    assert delivered.read(None, NOW).equals(once)


@pytest.mark.parametrize("typed", [kind for kind in KINDS if kind not in ("module", "modified")])
def test_timestamps_without_an_offset_are_of_the_declared_zone_and_never_too_early(
    typed: str, deliver: Deliverer
) -> None:
    """Half past two occurs twice in that night: the later one is taken, so that nothing is known too early."""
    local = [datetime(2024, 10, 27, hour, 30) for hour in (1, 2, 3)]
    naive = shop.rows(3).with_columns(ordered_at=pl.Series(local), known_at=pl.Series(local))
    found = deliver(typed, naive, zone="Europe/Berlin").read(None, NOW)
    instants = [datetime(2024, 10, day, hour, 30, tzinfo=UTC) for day, hour in ((26, 23), (27, 1), (27, 2))]
    assert found["available_at"].to_list() == instants
    assert found["event_time"].to_list() == instants
    assert found["ordered_at"].to_list() == instants


SCHEMA = {name: TYPES[shop.COLUMNS.get(name, {"type": "timestamp"})["type"]] for name in shop.EXPECTED}


def expected(orders: pl.DataFrame, start: datetime | None, end: datetime) -> pl.DataFrame:
    """By brute force, row by row."""
    known = [at < end and (start is None or at >= start) for at in orders["known_at"]]
    return shop.as_delivered(orders.filter(known))


# What cannot be read is one line


@pytest.mark.parametrize("typed", ["csv", "jsonl", "json array", "parquet", "s3", "jdbc"])
def test_a_value_that_is_not_of_its_type_is_named_with_its_place(typed: str, deliver: Deliverer) -> None:
    wrong = shop.rows(5).with_columns(
        items=pl.when(pl.col("items") == 3).then(pl.lit("seven")).otherwise(pl.col("items").cast(pl.String))
    )
    with pytest.raises(ThroughlineError, match=r"orders.*row \d: items 'seven' is not of type integer") as caught:
        deliver(typed, wrong).read(None, NOW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("typed", ["csv", "jsonl", "parquet", "jdbc"])
def test_a_timestamp_without_an_offset_is_refused_where_no_zone_is_declared(typed: str, deliver: Deliverer) -> None:
    naive = shop.rows(3).with_columns(pl.col(pl.Datetime).dt.replace_time_zone(None))
    if typed == "jdbc":
        delivered = deliver(typed, naive, zone="Europe/Berlin")
        feed = delivered.usecase.sources.tables["orders"].feed.model_copy(update={"timezone": None})
        delivered.source._feed = feed  # type: ignore[attr-defined]
    else:
        delivered = deliver(typed, naive)
    with pytest.raises(ThroughlineError, match="has no time zone: send an offset, or declare `timezone`") as caught:
        delivered.read(None, NOW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("typed", ["csv", "parquet", "jdbc"])
def test_a_row_without_knowledge_time_is_refused(typed: str, deliver: Deliverer) -> None:
    never = shop.rows(6).with_columns(known_at=pl.when(pl.col("items") != 4).then("known_at"))
    with pytest.raises(ThroughlineError, match=r"row \d: known_at is missing") as caught:
        deliver(typed, never).read(None, NOW)
    assert "\n" not in str(caught.value)


# A database


def test_the_database_is_queried_for_the_window_and_the_declared_columns_only(deliver: Deliverer) -> None:
    from throughline.lakehouse import spark
    from throughline.sources.jdbc import _view, _window

    delivered = deliver("jdbc", shop.rows(5))
    feed = delivered.usecase.sources.tables["orders"].feed
    with spark.session(delivered.settings.spark_url) as session:
        delivered.read(None, NOW)  # the server has its driver
        session.sql(_view(feed))
        query = session.sql(_window(feed, ["order_id", "known_at"], shop.BEGAN, NOW))
        plan = query._explain_string()
    pushed = plan.partition("PushedFilters: [")[2].partition("]")[0]
    assert "LessThan(known_at" in pushed, plan
    assert "GreaterThanOrEqual(known_at" in pushed
    assert "internal" not in plan.partition("ReadSchema")[2]
    assert "internal" not in delivered.read(None, NOW).columns


def test_credentials_come_from_the_servers_environment_and_are_in_no_log(deliver: Deliverer) -> None:
    delivered = deliver("jdbc", shop.rows(5))
    table = delivered.usecase.sources.tables["orders"]
    address = table.feed.jdbc.partition("?")[0]
    for name, problem in (("SHOP", None), ("UNSET", "password authentication failed")):
        feed = table.feed.model_copy(update={"jdbc": address, "credentials": name})
        tables = {"orders": table.model_copy(update={"feed": feed})}
        sources = delivered.usecase.sources.model_copy(update={"tables": tables})
        source = source_of(delivered.settings, delivered.usecase.model_copy(update={"sources": sources}), "orders")
        if problem is None:
            assert source.read(None, NOW).height == 5
            continue
        with pytest.raises(ThroughlineError, match=problem) as caught:
            source.read(None, NOW)
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value)
    logs = list((deliver.folder / "spark" / "logs").glob("*.log"))
    assert logs
    assert not [log for log in logs if SECRET in log.read_text(errors="replace")]


def test_a_missing_table_or_column_is_one_line(deliver: Deliverer) -> None:
    delivered = deliver("jdbc", shop.rows(5))
    table = delivered.usecase.sources.tables["orders"]
    for change, problem in (
        ({"table": "nowhere"}, '"nowhere" does not exist'),
        ({"available_at": "seen_at"}, "seen_at"),
    ):
        tables = {"orders": table.model_copy(update={"feed": table.feed.model_copy(update=change)})}
        sources = delivered.usecase.sources.model_copy(update={"tables": tables})
        source = source_of(delivered.settings, delivered.usecase.model_copy(update={"sources": sources}), "orders")
        with pytest.raises(ThroughlineError, match=problem) as caught:
            source.read(None, NOW)
        assert "\n" not in str(caught.value)


# An object store


def test_a_store_that_is_unreachable_or_refuses_access_is_one_line(
    deliver: Deliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = deliver("s3", shop.rows(5))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(ThroughlineError, match=r"s3://lake/.* cannot be read") as caught:
        delivered.read(None, NOW)
    assert "\n" not in str(caught.value)
    assert "another-secret" not in str(caught.value)


# Rows pushed without a collector


def test_without_the_collector_pushed_rows_are_not_read(deliver: Deliverer) -> None:
    delivered = deliver("push", shop.rows(5))
    deliver.own.close()
    with pytest.raises(ThroughlineError, match=r"collector did not write .*throughline up") as caught:
        delivered.read(None, NOW)
    assert "\n" not in str(caught.value)
