"""A rollout in the graph: the sensor on a real ephemeral instance looks at it, and shows each of its steps once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import DagsterInstance, SensorResult, SkipReason, build_sensor_context, instance_for_test

from assets import rollouts
from assets.rollouts import rollout_key, rollout_sensor
from tests.support.rollout_world import ADA, NAME, World, make_world
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.rollout import controller


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with instance_for_test() as instance:
        yield instance


@pytest.fixture
def world(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(settings, monkeypatch)

    def look(_settings: Settings, usecase):
        return world.tick()

    monkeypatch.setattr(rollouts, "tick", look)
    return world


class Sensor:
    """The sensor, with the cursor that the daemon keeps."""

    def __init__(self, world: World, instance: DagsterInstance) -> None:
        self._world, self._instance = world, instance
        self.cursor: str | None = None
        self.shown: list[str] = []

    def tick(self) -> SensorResult | SkipReason:
        context = build_sensor_context(
            instance=self._instance, cursor=self.cursor, resources={"settings": self._world.settings}
        )
        result = rollout_sensor(self._world.usecase)(context)
        if isinstance(result, SensorResult):
            self.cursor = result.cursor
            for event in result.asset_events:
                self._instance.report_runless_asset_event(event)
                self.shown.append(f"{event.asset_key.path[-1]}: {event.description}")
        return result


@pytest.fixture
def sensor(world: World, instance: DagsterInstance) -> Sensor:
    return Sensor(world, instance)


def test_without_a_rollout_the_sensor_skips_with_the_reason(sensor: Sensor, world: World) -> None:
    assert "no rollout yet" in sensor.tick().skip_message
    world.release(2, over=1)
    world.to_the_end()
    sensor.tick()
    assert "no rollout is under way; the last one was promoted" in sensor.tick().skip_message


def test_each_step_is_an_event_with_shares_evidence_and_a_picture(
    sensor: Sensor, world: World, instance: DagsterInstance
) -> None:
    world.release(2, over=1)
    for _ in range(20):
        sensor.tick()
    assert sensor.shown == [
        f"rollout: {NAME}/2: started: canary 10%",
        f"rollout: {NAME}/2: advanced: canary 50%",
        f"rollout: {NAME}/2: promoted",
        "endpoint: None",
    ]
    newest = instance.get_latest_materialization_event(rollout_key(world.usecase)).asset_materialization
    assert newest.metadata["share"].value == 1.0
    assert newest.metadata["why"].value.startswith("within tolerance: errors")
    assert newest.metadata["evidence"].value.startswith("![shares and evidence over time](data:image/png;base64,iVBOR")
    endpoint = instance.get_latest_materialization_event(rollouts.endpoint_key(world.usecase)).asset_materialization
    assert endpoint.metadata["model"].value == f"{NAME}/2"
    assert endpoint.tags["dagster/data_version"] == world.rollout.model.sha256


def test_steps_that_others_took_are_shown_once_too(sensor: Sensor, world: World) -> None:
    """As by `throughline promote`, which looks itself while it waits."""
    world.target.does[2] = {"errors": 0.5}
    world.release(2, over=1)
    sensor.tick()
    world.to_the_end()
    for _ in range(3):
        sensor.tick()
    assert sensor.shown == [f"rollout: {NAME}/2: started: canary 10%", f"rollout: {NAME}/2: rolled back"]


def test_while_nothing_changes_the_sensor_states_where_the_rollout_is(sensor: Sensor, world: World) -> None:
    world.release(2, over=1)
    sensor.tick()
    controller.pause(world.settings, world.usecase, ADA, world.clock)
    sensor.tick()
    message = sensor.tick().skip_reason.skip_message
    assert f"{NAME}/2 beside {NAME}/1: paused, stage 1 of 2, canary 10%" in message


def test_an_outcome_that_cannot_be_carried_out_is_an_error_of_the_sensor_and_tried_again(
    sensor: Sensor, world: World
) -> None:
    world.target.does[2] = {"errors": 1.0}
    world.release(2, over=1)
    sensor.tick()
    assert world.rollout.outcome is None
    real = world.target.apply

    def refusing(revisions):
        raise ThroughlineError("the target does not answer")

    world.target.apply = refusing
    with pytest.raises(ThroughlineError, match="the target does not answer"):
        sensor.tick()
    world.target.apply = real
    sensor.tick()
    assert sensor.shown[-1] == f"rollout: {NAME}/2: rolled back"
    assert world.serving() == [(1, "stable", 1.0)]
