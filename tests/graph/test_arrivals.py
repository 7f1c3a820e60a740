"""A use case that only a declaration and its files make known: its days come by themselves, each once, late ones too.

The sensor and the schedule on a real instance, with real runs of the raw assets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DefaultScheduleStatus,
    ExecuteInProcessResult,
    RunRequest,
    SensorResult,
    SkipReason,
    build_schedule_context,
    build_sensor_context,
    instance_for_test,
    materialize,
)

from assets.arrivals import arrivals, arrivals_sensor, daily_schedule
from assets.raw import raw_assets
from assets.resources import RecordIOManager
from tests.support import shop
from throughline.foundation import tags
from throughline.foundation.clock import ReplayClock
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import pin, read
from throughline.sources.push import PushIntake
from throughline.usecase import UseCase

KEY = AssetKey(["shop", "raw", "orders"])
DAYS = [shop.FIRST + timedelta(days=n) for n in range(6)]
Put = Callable[..., Path]


@pytest.fixture
def usecase(tmp_path: Path) -> UseCase:
    feed = {"files": f"{tmp_path}/in/*.csv", "event_time": "ordered_at", "available_at": "known_at"}
    return shop.declare(tmp_path / "usecases", feed)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """A file with the orders of a day, some of them, or with another amount."""

    def put(name: str, day: date, amount: float = 1.0, hours: range = range(24)) -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        first = (day - shop.FIRST).days * 24
        orders = shop.rows(200)[[first + hour for hour in hours]].with_columns(amount=pl.lit(amount))
        orders.write_csv(path)
        put.written += 1  # type: ignore[attr-defined]
        written = shop.BEGAN + 40 * shop.DAY + timedelta(seconds=put.written)  # type: ignore[attr-defined]
        os.utime(path, (written.timestamp(), written.timestamp()))
        return path

    put.written = 0  # type: ignore[attr-defined]
    return put


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with instance_for_test() as instance:
        yield instance


class Home:
    """What the daemon does: ticks with a cursor, and runs of what they requested."""

    def __init__(self, settings: Settings, usecase: UseCase, instance: DagsterInstance) -> None:
        self.settings, self.usecase, self.instance = settings, usecase, instance
        self.cursor: str | None = None
        self.sensor = arrivals_sensor(usecase, "orders")

    def at(self, day: date) -> None:
        """Local midnight at the start of a day."""
        ReplayClock(self.settings.home / "clock.json", shop.BEGAN).advance_to(self.usecase.day_start(day))

    def tick(self) -> list[RunRequest]:
        context = build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"settings": self.settings}
        )
        self.result: Any = self.sensor(context)
        if isinstance(self.result, SkipReason):
            return []
        assert isinstance(self.result, SensorResult)
        self.cursor = self.result.cursor
        return list(self.result.run_requests or [])

    def why_not(self) -> str:
        skip = self.result if isinstance(self.result, SkipReason) else self.result.skip_reason
        return str(skip.skip_message)

    def execute(self, request: RunRequest, fails: bool = False) -> ExecuteInProcessResult:
        return materialize(
            list(raw_assets(self.usecase).assets),
            selection=[KEY],
            instance=self.instance,
            resources={"settings": self.settings, "io_manager": None if fails else RecordIOManager(self.settings)},
            tags=dict(request.tags),
            raise_on_error=False,
        )

    def until_quiet(self) -> int:
        """Tick and execute until nothing is requested. Returns the number of runs."""
        for runs in range(20):
            requests = self.tick()
            if not requests:
                return runs
            for request in requests:
                assert self.execute(request).success
        raise AssertionError("requested for ever")

    def content(self) -> pl.DataFrame:
        return read(self.settings, pin(self.settings, "shop/raw/orders")).collect().sort("order_id")


@pytest.fixture
def home(settings: Settings, usecase: UseCase, instance: DagsterInstance) -> Home:
    home = Home(settings, usecase, instance)
    home.at(DAYS[4])
    return home


def days_of(request: RunRequest) -> tuple[str, str]:
    return request.tags[tags.RANGE_START], request.tags[tags.RANGE_END]


def test_files_that_arrive_are_ingested_in_one_run_of_their_days(home: Home, put: Put) -> None:
    for number in range(3):
        put(f"{number}.csv", DAYS[number])
    (request,) = home.tick()
    assert days_of(request) == (str(DAYS[0]), str(DAYS[2]))
    assert home.execute(request).success
    assert home.tick() == []
    assert home.content().height == 72
    assert home.instance.get_materialized_partitions(KEY) == {str(day) for day in DAYS[:3]}


def test_a_thousand_ticks_without_a_new_file_launch_nothing(home: Home, put: Put) -> None:
    put("a.csv", DAYS[0])
    assert home.until_quiet() == 1
    for _ in range(1000):
        assert home.tick() == []
    assert home.why_not() == "nothing arrived"
    assert home.instance.get_runs_count() == 1


def test_a_late_file_replaces_its_old_day_and_leaves_the_others(home: Home, put: Put) -> None:
    put("a.csv", DAYS[0])
    put("b.csv", DAYS[1], hours=range(20))
    put("c.csv", DAYS[2])
    assert home.until_quiet() == 1
    before = home.content()
    put("b-late.csv", DAYS[1], hours=range(20, 24))
    (request,) = home.tick()
    assert days_of(request) == (str(DAYS[1]), str(DAYS[1]))
    assert home.execute(request).success
    after = home.content()
    others = pl.col("day") != DAYS[1]
    assert after.filter(others).equals(before.filter(others))  # also by the run that brought them
    assert after.filter(~others)["order_id"].to_list() == [f"o{n:04d}" for n in range(24, 48)]
    assert home.until_quiet() == 0


def test_a_corrected_file_replaces_its_day_and_a_moved_one_both_days(home: Home, put: Put) -> None:
    put("a.csv", DAYS[0], amount=1.0)
    put("b.csv", DAYS[1])
    home.until_quiet()
    put("a.csv", DAYS[0], amount=2.0)
    assert home.until_quiet() == 1
    assert home.content().filter(day=DAYS[0])["amount"].unique().to_list() == [2.0]
    put("a.csv", DAYS[2])  # the same name with the rows of another day
    (request,) = home.tick()
    assert days_of(request) == (str(DAYS[0]), str(DAYS[0]))
    # nothing is delivered for that day any more: refused, as the declaration has it, and what was there stays
    assert not home.execute(request).success
    assert home.content().filter(day=DAYS[0]).height == 24


def test_the_same_file_delivered_again_changes_no_row(home: Home, put: Put) -> None:
    path = put("a.csv", DAYS[0])
    home.until_quiet()
    before = home.content().drop("ingestion_run_id")
    os.utime(path)
    assert home.until_quiet() == 1
    assert home.content().drop("ingestion_run_id").equals(before)


def test_a_day_that_has_not_ended_waits_for_its_end(home: Home, put: Put) -> None:
    put("today.csv", DAYS[4], hours=range(1, 5))  # the first hour after four days, one of them of 25, is theirs
    assert home.tick() == []
    assert "1 days from 2024-10-29 on have not ended" in home.why_not()
    put("more.csv", DAYS[4], hours=range(5, 9))
    assert home.tick() == []
    home.at(DAYS[5])
    (request,) = home.tick()
    assert home.execute(request).success
    assert home.content().height == 8


def test_a_failed_run_is_tried_again_and_given_up_until_the_file_is_mended(home: Home, put: Put) -> None:
    path = put("a.csv", DAYS[0])
    good = path.read_bytes()
    path.write_bytes(good.replace(b"o0003,3,", b"o0003,three,"))
    os.utime(path, (usable := (shop.BEGAN + shop.DAY / 2).timestamp(), usable))
    keys = []
    while requests := home.tick():
        keys.append(requests[0].run_key)
        done = home.execute(requests[0])
        assert not done.success
        (failure,) = done.get_step_failure_events()
        assert "row 4: items 'three' is not of type integer" in failure.step_failure_data.error.cause.message
    assert len(set(keys)) == 3
    assert "1 days from 2024-10-25 on failed 3 times" in home.why_not()
    path.write_bytes(good)
    assert home.until_quiet() == 1
    assert home.content().height == 24


def test_a_run_that_a_person_started_again_counts(home: Home, put: Put) -> None:
    path = put("a.csv", DAYS[0])
    good = path.read_bytes()
    (request,) = home.tick()
    path.unlink()
    assert not home.execute(request).success
    path.write_bytes(good)
    assert home.execute(request).success  # as "re-execute" does: the same tags
    (after_that,) = [request.tags[tags.ARRIVAL] for request in home.tick()] or [None]
    assert after_that != request.tags[tags.ARRIVAL]


def test_days_ingested_before_the_first_tick_are_not_ingested_again(home: Home, put: Put) -> None:
    put("a.csv", DAYS[0])
    home.execute(RunRequest(tags={tags.RANGE_START: str(DAYS[0]), tags.RANGE_END: str(DAYS[0])}))
    put("b.csv", DAYS[1])
    (request,) = home.tick()
    assert days_of(request) == (str(DAYS[1]), str(DAYS[1]))


def test_a_day_that_was_there_without_a_row_gets_the_file_that_comes_later(home: Home, put: Put) -> None:
    """The first look saw an empty folder, so everything after it is news."""
    assert home.tick() == []
    assert home.cursor is not None
    put("a.csv", DAYS[0])
    assert len(home.tick()) == 1


def test_a_reference_table_comes_whole_whenever_its_files_change(
    tmp_path: Path, settings: Settings, instance: DagsterInstance, put: Put
) -> None:
    feed = {"files": f"{tmp_path}/in/*.csv", "event_time": "ordered_at", "available_at": "known_at"}
    tables = {"orders": shop.table(feed, static=True)}
    usecase = shop.declare(tmp_path / "static", None, sources={"tables": tables})
    home = Home(settings, usecase, instance)
    home.at(DAYS[3])
    put("a.csv", DAYS[0])
    (request,) = home.tick()
    assert tags.RANGE_START not in request.tags
    assert home.execute(request).success
    assert home.until_quiet() == 0
    put("b.csv", DAYS[1])
    assert home.until_quiet() == 1
    assert home.content().height == 48


def test_pushed_rows_launch_runs_of_their_days_in_the_same_way(
    tmp_path: Path, settings: Settings, instance: DagsterInstance
) -> None:

    usecase = shop.declare(tmp_path / "pushed", {"push": "order_id", "event_time": "ordered_at"})
    home = Home(settings, usecase, instance)
    home.at(DAYS[4])
    intake = PushIntake(settings, {"shop": usecase})

    def push(number: int, known: datetime) -> None:
        row = {"order_id": f"p{number}", "items": 1, "amount": 1.0, "paid": True, "ordered_at": known.isoformat()}
        body = pl.DataFrame([{**row, "available_at": known.isoformat()}]).write_ndjson().encode()
        intake._journal.append(intake.check("shop", "orders", body), sync=True)
        intake.flush()

    assert home.tick() == []
    push(1, shop.BEGAN + shop.HOUR)
    push(2, shop.BEGAN + 2 * shop.DAY)
    (request,) = home.tick()
    assert days_of(request) == (str(DAYS[0]), str(DAYS[0]))
    assert home.tick()[0].tags[tags.ARRIVAL] == request.tags[tags.ARRIVAL]  # nobody started it: the same again
    intake.close()


# The schedule


def schedule_tick(
    usecase: UseCase, settings: Settings, instance: DagsterInstance, at: datetime
) -> RunRequest | SkipReason:
    context = build_schedule_context(instance, scheduled_execution_time=at, resources={"settings": settings})
    return daily_schedule(usecase, settings)(context)  # type: ignore[return-value]


def test_in_a_replay_the_schedule_is_off_and_asks_for_nothing(
    usecase: UseCase, settings: Settings, instance: DagsterInstance
) -> None:
    schedule = daily_schedule(usecase, settings)
    assert schedule.default_status == DefaultScheduleStatus.STOPPED
    assert schedule.execution_timezone == "Europe/Berlin"
    tick = schedule_tick(usecase, settings, instance, shop.BEGAN + 3 * shop.DAY)
    assert isinstance(tick, SkipReason)


def test_in_production_the_days_that_ended_come_after_midnight_and_missed_ones_with_them(
    usecase: UseCase, tmp_path: Path, instance: DagsterInstance, put: Put
) -> None:
    wall = load_settings(home=tmp_path / "home", clock="wall")
    assert daily_schedule(usecase, wall).default_status == DefaultScheduleStatus.RUNNING
    home = Home(wall, usecase, instance)
    for number in range(3):
        put(f"{number}.csv", DAYS[number])
    # a quarter past midnight in Berlin after the night of 25 hours
    after_third = usecase.day_start(DAYS[3]) + shop.HOUR / 4
    request = schedule_tick(usecase, wall, instance, after_third)
    assert isinstance(request, RunRequest)
    assert days_of(request) == (str(DAYS[0]), str(DAYS[2]))
    assert home.execute(request).success
    assert isinstance(schedule_tick(usecase, wall, instance, after_third), SkipReason)
    tomorrow = schedule_tick(usecase, wall, instance, after_third + shop.DAY)
    assert isinstance(tomorrow, RunRequest)
    assert days_of(tomorrow) == (str(DAYS[3]), str(DAYS[3]))
    assert tomorrow.run_key != request.run_key
    # what is missing for longer than a week is for a person, and after the declared end there are no days
    much_later = schedule_tick(usecase, wall, instance, after_third + 20 * shop.DAY)
    assert isinstance(much_later, RunRequest)
    assert days_of(much_later) == ("2024-11-10", "2024-11-16")
    assert days_of(schedule_tick(usecase, wall, instance, after_third + 300 * shop.DAY))[1] == "2024-11-29"  # type: ignore[arg-type]


# The declaration is all there is


def test_a_new_use_case_has_its_assets_sensor_and_schedule_without_a_line_of_platform_code(
    usecase: UseCase, settings: Settings
) -> None:
    room = arrivals(usecase, settings)
    assert [sensor.name for sensor in room.sensors or []] == ["shop_orders_arrivals"]
    assert [schedule.name for schedule in room.schedules or []] == ["shop_daily"]
    (asset,) = raw_assets(usecase).assets or []
    assert asset.key == KEY
    assert {check.name for check in asset.check_specs} == {"schema", "rows", "unique_key", "volume"}
