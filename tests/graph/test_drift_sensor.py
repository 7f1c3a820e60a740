"""A drift retrains once, for a stated reason: the sensor on a real ephemeral instance with real runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

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
from throughline.records import CalibrationRecord
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


def observe(
    instance: DagsterInstance, verdict: str, now: datetime = NOW, trained_until: datetime | None = None
) -> None:
    """Judge the calibration at `now`, as the monitoring asset does."""
    record = CalibrationRecord(
        model="flight_delay/1",
        window_from=now - timedelta(days=14),
        window_until=now,
        outcomes=9000,
        mean_score=0.20,
        outcome_rate=0.28 if verdict == "drift" else 0.21,
        verdict=verdict,
        reason="gap -0.0800 is beyond 0.05" if verdict == "drift" else "as judged",
    )
    instance.report_runless_asset_event(
        AssetMaterialization(
            CALIBRATION,
            metadata={
                "record": record.model_dump_json(),
                "trained_until": (trained_until or now - timedelta(days=20)).isoformat(),
            },
        )
    )


def tick(instance: DagsterInstance, usecase: UseCase) -> SensorResult | SkipReason:
    return drift_sensor(usecase)(build_sensor_context(instance=instance))


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


def test_no_judgement_yet_means_no_retraining(instance: DagsterInstance, usecase: UseCase) -> None:
    assert "never judged" in tick(instance, usecase).skip_message


def test_a_drift_requests_one_retraining_with_its_cause(instance: DagsterInstance, usecase: UseCase) -> None:
    observe(instance, "drift")
    (request,) = tick(instance, usecase).run_requests
    assert request.tags["throughline/cause"] == "drift: gap -0.0800 is beyond 0.05"
    assert request.tags["throughline/data_clock"] == NOW.isoformat()


def test_a_thousand_ticks_of_the_same_drift_start_one_retraining(instance: DagsterInstance, usecase: UseCase) -> None:
    observe(instance, "drift")
    first = tick(instance, usecase)
    keys = {request.run_key for request in first.run_requests}
    for _ in range(20):  # before the daemon launched anything: the same run key, which the daemon does not launch twice
        keys |= {request.run_key for request in tick(instance, usecase).run_requests}
    assert len(keys) == 1
    execute(instance, first)
    for _ in range(1000):
        result = tick(instance, usecase)
        assert not result.run_requests
    assert "cooling down" in result.skip_reason.skip_message


def test_a_failed_retraining_is_tried_again_under_another_key(instance: DagsterInstance, usecase: UseCase) -> None:
    observe(instance, "drift")
    first = tick(instance, usecase)
    execute(instance, first, fails=True)
    second = tick(instance, usecase)
    assert second.run_requests[0].run_key != first.run_requests[0].run_key
    execute(instance, second, fails=True)
    execute(instance, tick(instance, usecase), fails=True)
    assert "gave up after 3" in tick(instance, usecase).skip_reason.skip_message


def test_a_new_drift_after_the_cool_down_retrains_again(instance: DagsterInstance, usecase: UseCase) -> None:
    observe(instance, "drift")
    execute(instance, tick(instance, usecase))
    later = NOW + usecase.monitoring.cool_down
    observe(instance, "drift", now=later - timedelta(hours=1))
    assert not tick(instance, usecase).run_requests
    observe(instance, "drift", now=later)
    assert len(tick(instance, usecase).run_requests) == 1


@pytest.mark.parametrize("verdict", ["ok", "cannot_say"])
def test_without_a_drift_nothing_is_retrained(instance: DagsterInstance, usecase: UseCase, verdict: str) -> None:
    observe(instance, verdict)
    assert not tick(instance, usecase).run_requests


def test_an_old_model_is_retrained_though_it_is_calibrated(instance: DagsterInstance, usecase: UseCase) -> None:
    observe(instance, "ok", trained_until=NOW - usecase.monitoring.max_model_age - timedelta(days=1))
    (request,) = tick(instance, usecase).run_requests
    assert request.tags["throughline/cause"].startswith("age: ")
