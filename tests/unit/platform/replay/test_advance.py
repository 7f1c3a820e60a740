"""A replayed day: deliveries first, then hour by hour what is due, then monitoring; interrupted, it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from throughline.foundation.clock import ReplayClock, data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.graph.client import JobRun, RunOutcome
from throughline.records import CalibrationRecord, OutcomesRecord
from throughline.records.store import save_record
from throughline.replay import advance as replay
from throughline.replay.advance import advance_day
from throughline.usecase import UseCase, get_usecase

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TIME = pl.Datetime("us", "UTC")


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


class World:
    """All that a replayed day touches, recorded in the order in which it is touched."""

    def __init__(self, settings: Settings, usecase: UseCase) -> None:
        self.settings, self.usecase = settings, usecase
        self.log: list[tuple[Any, ...]] = []
        self.predicted: list[int] = []
        self.fails: set[str] = set()
        self.breaks_at: datetime | None = None
        self.cursor: str | None = "monitor"
        self.retraining: list[JobRun] = []

    @property
    def now(self) -> datetime:
        return data_clock(self.settings, self.usecase.clock_start(self.settings)).now()

    # the graph
    def launch(self, *, job: str, partitions: tuple[str, str] | None = None, tags: dict[str, str] | None = None) -> str:
        step = job.removeprefix(f"{self.usecase.name}_")
        self.log.append(("launch", step, partitions, tags, self.now))
        return step

    def follow(self, run_id: str) -> RunOutcome:
        self.log.append(("follow", run_id))
        if run_id in self.fails:
            return RunOutcome(run_id, "FAILURE", errors=[f"{run_id}: it broke"])
        if run_id == "monitor":
            self._monitored()
        return RunOutcome(run_id, "SUCCESS")

    def sensor_cursor(self, sensor: str) -> str | None:
        return self.cursor

    def runs(self, tags: dict[str, str], limit: int) -> list[JobRun]:
        return [run for run in self.retraining if tags.items() <= run.tags.items()][:limit]

    # the stores and the endpoint
    def materialise(self, settings: Settings, usecase: UseCase, until: datetime) -> None:
        self.log.append(("online", until, self.now))

    def predict(self, settings: Settings, usecase: UseCase, instances: Sequence[dict[str, Any]]) -> list[Any]:
        if self.breaks_at is not None and self.now >= self.breaks_at:
            raise ThroughlineError("The model server does not answer")
        self.log.append(("predict", [instance["flight"] for instance in instances], self.now))
        self.predicted += [instance["flight"] for instance in instances]
        return []

    def _monitored(self) -> None:
        name = self.usecase.name
        outcomes = OutcomesRecord(
            table=TableReference("u/monitoring/outcomes", 0), as_of=self.now, predictions=9, labelled=1, pending=1,
            never_labelled=0, log_complete=True,
        )  # fmt: skip
        judged = CalibrationRecord(
            model="m/1", window_from=self.now - DAY, window_until=self.now, outcomes=1, mean_score=None,
            outcome_rate=None, verdict="ok", reason="r",
        )  # fmt: skip
        save_record(self.settings, (name, "monitoring", "outcomes"), outcomes)
        save_record(self.settings, (name, "monitoring", "calibration"), judged)

    def advance(self) -> dict[str, Any]:
        return advance_day(self.settings, self.usecase, self, self.follow, lambda _: None)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, usecase: UseCase, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(Settings(home=tmp_path), usecase, monkeypatch)


def make_world(settings: Settings, usecase: UseCase, monkeypatch: pytest.MonkeyPatch) -> World:
    """A spine with a flight every 20 minutes over four days around the start of the clock."""
    world = World(settings, usecase)
    began = usecase.clock_start(settings) - DAY
    number = pl.int_range(4 * 72, eager=True)
    departure = (pl.lit(began) + pl.duration(minutes=20 * number) + usecase.prediction.lead).cast(TIME)
    spine = pl.DataFrame({"flight": number}).select(
        origin=pl.lit("JFK"), carrier=pl.lit("B6"), dest=pl.lit("BOS"), tailnum=pl.lit("N1"), flight="flight",
        scheduled_departure=departure, scheduled_arrival=departure,
        prediction_time=(departure - usecase.prediction.lead).cast(TIME),
        available_at=(departure - 7 * DAY).cast(TIME),
    )  # fmt: skip
    path = settings.table_path(usecase.name, "features", usecase.features.spine)
    write_deltalake(str(path), spine.reverse().to_arrow())
    monkeypatch.setattr("throughline.featurestore.materialise.materialise_until", world.materialise)
    monkeypatch.setattr(replay, "predict", world.predict)
    return world


def due(world: World, start: datetime, end: datetime) -> list[int]:
    """Numbers of the flights to be predicted in [start, end)."""
    began = world.usecase.clock_start(world.settings) - DAY
    return [n for n in range(4 * 72) if start <= began + n * timedelta(minutes=20) < end]


def test_a_day_is_delivered_then_replayed_then_judged(world: World, usecase: UseCase) -> None:
    start = world.now
    done = world.advance()
    assert world.log[0] == (
        "launch",
        "ingest",
        ("2013-04-01", "2013-04-01"),
        {"throughline/as_of": (start + DAY).isoformat()},
        start,
    )
    assert world.log[1] == ("follow", "ingest")
    assert world.log[-2:] == [("launch", "monitor", None, None, start + DAY), ("follow", "monitor")]
    assert world.now == start + DAY
    assert done.pop("seconds") >= 0
    assert done == {
        "usecase": "flight_delay", "day": "2013-04-01", "predictions": 72, "labelled": 1, "never_labelled": 0,
        "model": "m/1", "verdict": "ok", "gap": None, "reason": "r", "retraining": None, "retraining_status": None,
        "rollout": None,
    }  # fmt: skip


def test_every_request_of_the_day_is_sent_once_in_its_hour_after_that_hours_ticks(world: World) -> None:
    start = world.now
    world.advance()
    assert world.predicted == due(world, start, start + DAY)
    replayed = [step for step in world.log if step[0] in ("online", "predict")]
    assert [step[0] for step in replayed] == ["online", "predict"] * 24
    for hour in range(24):
        online, sent = replayed[2 * hour : 2 * hour + 2]
        at = start + hour * HOUR
        assert online == ("online", at, at)
        assert sent == ("predict", due(world, at, at + HOUR), at)


def test_days_follow_each_other_without_a_gap(world: World) -> None:
    start = world.now
    assert [world.advance()["day"] for _ in range(3)] == ["2013-04-01", "2013-04-02", "2013-04-03"]
    assert world.predicted == due(world, start, start + 3 * DAY)


@pytest.mark.parametrize(("day", "hours"), [(date(2013, 3, 10), 23), (date(2013, 11, 3), 25)])
def test_a_day_on_which_the_clocks_change_has_its_own_hours(
    tmp_path: Path, usecase: UseCase, monkeypatch: pytest.MonkeyPatch, day: date, hours: int
) -> None:
    world = make_world(Settings(home=tmp_path, data_until=day), usecase, monkeypatch)
    start = world.now
    done = world.advance()
    assert (done["day"], done["predictions"]) == (day.isoformat(), 3 * hours)
    assert world.now == start + hours * HOUR == usecase.day_start(day + DAY)
    assert len([step for step in world.log if step[0] == "online"]) == hours


def test_a_clock_between_hours_is_brought_to_the_full_hour(world: World) -> None:
    start = world.now
    moved = data_clock(world.settings, start)
    assert isinstance(moved, ReplayClock)
    moved.advance_to(start + timedelta(minutes=90))
    world.advance()
    assert world.predicted == due(world, start + timedelta(minutes=90), start + DAY)
    assert [step[-1] for step in world.log if step[0] == "online"][:2] == [start + 1.5 * HOUR, start + 2 * HOUR]


def test_interrupted_it_goes_on_in_the_same_day_and_hour(world: World) -> None:
    start = world.now
    world.breaks_at = start + 7 * HOUR
    with pytest.raises(ThroughlineError, match="model server"):
        world.advance()
    assert world.now == start + 7 * HOUR
    world.breaks_at = None
    assert world.advance()["day"] == "2013-04-01"
    assert world.predicted == due(world, start, start + DAY)
    assert world.now == start + DAY


def test_a_day_whose_rows_cannot_be_ingested_is_not_replayed(world: World) -> None:
    start = world.now
    world.fails = {"ingest"}
    with pytest.raises(ThroughlineError, match=r"data of 2013-04-01: ingest: it broke\. `throughline advance` goes on"):
        world.advance()
    assert world.now == start
    assert world.predicted == []


def test_monitoring_that_fails_is_an_error(world: World) -> None:
    world.fails = {"monitor"}
    with pytest.raises(ThroughlineError, match=r"monitoring of 2013-04-01: monitor: it broke"):
        world.advance()


def test_a_retraining_that_the_day_caused_is_waited_for_and_reported(world: World) -> None:
    until = (world.now + DAY).isoformat()

    def run(run_id: str, at: str) -> JobRun:
        tags = {"throughline/retrain": "flight_delay", "throughline/data_clock": at, "throughline/cause": f"drift {at}"}
        return JobRun(run_id, "flight_delay_retrain", "STARTED", 0.0, None, None, tags, {})

    world.retraining = [run("of an earlier day", "2013-03-01T00:00:00+00:00"), run("of this day", until)]
    world.fails = {"of this day"}
    done = world.advance()
    assert world.log[-1] == ("follow", "of this day")
    assert (done["retraining"], done["retraining_status"]) == (f"drift {until}", "FAILURE")


def test_a_sensor_without_a_tick_is_an_error_after_the_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SENSOR_DEADLINE_S", -1)
    world.cursor = "an earlier run"
    with pytest.raises(ThroughlineError, match="sensor flight_delay_drift had no tick"):
        world.advance()


def test_the_wall_clock_is_not_advanced(tmp_path: Path, usecase: UseCase) -> None:
    world = World(Settings(home=tmp_path, clock="wall"), usecase)
    with pytest.raises(ThroughlineError, match="wall clock"):
        world.advance()
    assert world.log == []


def test_beyond_the_recording_there_is_nothing_to_advance_to(tmp_path: Path, usecase: UseCase) -> None:
    world = World(Settings(home=tmp_path, data_until=usecase.replay.end), usecase)
    with pytest.raises(ThroughlineError, match="recording of flight_delay ends before 2014-01-01"):
        world.advance()
    assert world.log == []
    assert world.now == datetime(2014, 1, 1, 5, tzinfo=UTC)
