"""A drift retrains once, for a stated reason: the sensor on a real ephemeral instance with real runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    SensorResult,
    SkipReason,
    build_sensor_context,
    instance_for_test,
    job,
    op,
)

from assets.automation import drift_sensor
from throughline.foundation.settings import Settings, load_settings
from throughline.records import CalibrationRecord
from throughline.records.store import save_record
from throughline.usecase import UseCase, get_usecase

NOW = datetime(2013, 4, 20, 4, tzinfo=UTC)
CALIBRATION = AssetKey(["flight_delay", "monitoring", "calibration"])


@pytest.fixture
def usecase() -> UseCase:
    return get_usecase("flight_delay")


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with instance_for_test() as instance:
        yield instance


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


Observe = Callable[..., None]
Tick = Callable[[], SensorResult | SkipReason]


@pytest.fixture
def observe(instance: DagsterInstance, settings: Settings) -> Observe:
    """Judge the calibration at `now`, as the monitoring asset does: its record is kept, then its event is logged."""

    def observe(verdict: str, now: datetime = NOW, trained_until: datetime | None = None, run_id: str = "") -> None:
        trained_until = trained_until or now - timedelta(days=20)
        save_record(settings, tuple(CALIBRATION.path), judged(verdict, now, trained_until, run_id))
        instance.report_runless_asset_event(AssetMaterialization(CALIBRATION))  # its run has no id

    return observe


def judged(verdict: str, now: datetime, trained_until: datetime, run_id: str) -> CalibrationRecord:
    return CalibrationRecord(
        model="flight_delay/1",
        window_from=now - timedelta(days=14),
        window_until=now,
        outcomes=9000,
        mean_score=0.20,
        outcome_rate=0.28 if verdict == "drift" else 0.21,
        verdict=verdict,
        reason="gap -0.0800 is beyond 0.05" if verdict == "drift" else "as judged",
        run_id=run_id,
        trained_until=trained_until,
    )


@pytest.fixture
def tick(instance: DagsterInstance, usecase: UseCase, settings: Settings) -> Tick:
    return lambda: drift_sensor(usecase)(build_sensor_context(instance=instance, resources={"settings": settings}))


@op
def retrain_op(context) -> None:
    if context.run.tags.get("fails"):
        raise RuntimeError("a worker was lost")


@job
def retrain() -> None:
    retrain_op()


def execute(instance: DagsterInstance, result: SensorResult, *, fails: bool = False) -> None:
    """What the daemon does with a request: a real run on the instance that carries the request's tags."""
    (request,) = result.run_requests
    tags = dict(request.tags) | ({"fails": "yes"} if fails else {})
    retrain.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


def test_no_judgement_yet_means_no_retraining(tick: Tick) -> None:
    assert "never judged" in tick().skip_message


def test_a_drift_requests_one_retraining_with_its_cause(observe: Observe, tick: Tick) -> None:
    observe("drift")
    (request,) = tick().run_requests
    assert request.tags["throughline/cause"] == "drift: gap -0.0800 is beyond 0.05"
    assert request.tags["throughline/data_clock"] == NOW.isoformat()


def test_a_thousand_ticks_of_the_same_drift_start_one_retraining(
    observe: Observe, tick: Tick, instance: DagsterInstance
) -> None:
    observe("drift")
    first = tick()
    keys = {request.run_key for request in first.run_requests}
    for _ in range(20):  # before the daemon launched anything: the same run key, which the daemon does not launch twice
        keys |= {request.run_key for request in tick().run_requests}
    assert len(keys) == 1
    execute(instance, first)
    for _ in range(1000):
        result = tick()
        assert not result.run_requests
    assert "cooling down" in result.skip_reason.skip_message


def test_a_failed_retraining_is_tried_again_under_another_key(
    observe: Observe, tick: Tick, instance: DagsterInstance
) -> None:
    observe("drift")
    first = tick()
    execute(instance, first, fails=True)
    second = tick()
    assert second.run_requests[0].run_key != first.run_requests[0].run_key
    execute(instance, second, fails=True)
    execute(instance, tick(), fails=True)
    assert "gave up after 3" in tick().skip_reason.skip_message


def test_a_new_drift_after_the_cool_down_retrains_again(
    observe: Observe, tick: Tick, instance: DagsterInstance, usecase: UseCase
) -> None:
    observe("drift")
    execute(instance, tick())
    later = NOW + usecase.monitoring.cool_down
    observe("drift", now=later - timedelta(hours=1))
    assert not tick().run_requests
    observe("drift", now=later)
    assert len(tick().run_requests) == 1


@pytest.mark.parametrize("verdict", ["ok", "cannot_say"])
def test_without_a_drift_nothing_is_retrained(observe: Observe, tick: Tick, verdict: str) -> None:
    observe(verdict)
    assert not tick().run_requests


def test_an_old_model_is_retrained_though_it_is_calibrated(observe: Observe, tick: Tick, usecase: UseCase) -> None:
    observe("ok", trained_until=NOW - usecase.monitoring.max_model_age - timedelta(days=1))
    (request,) = tick().run_requests
    assert request.tags["throughline/cause"].startswith("age: ")


def test_a_judgement_whose_run_did_not_end_retrains_nothing(observe: Observe, tick: Tick) -> None:
    """The record is kept before Dagster logs the materialisation: a run that dies in between judged nothing."""
    observe("drift", run_id="a-run-that-died")
    result = tick()
    assert "a-run-that-died" in result.skip_message


def test_a_tick_without_a_reason_to_retrain_opens_no_instance(
    observe: Observe, usecase: UseCase, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening one costs 0.1 s of a core, and the sensor looks every few seconds."""
    observe("ok")
    context = build_sensor_context(resources={"settings": settings})
    monkeypatch.setattr(type(context), "instance", property(lambda _: pytest.fail("an instance was opened")))
    assert "as judged" in drift_sensor(usecase)(context).skip_reason.skip_message
