"""A run's steps are sent when it has ended; a receiver that is down fails neither the run nor the sensor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dagster import (
    AssetKey,
    AssetsDefinition,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    DataVersion,
    DefaultSensorStatus,
    Definitions,
    ExecuteInProcessResult,
    MetadataValue,
    Output,
    SkipReason,
    asset,
    build_run_status_sensor_context,
)

from assets.lineage_events import ENDED, lineage_events
from tests.support.lineage_receiver import Receiver, receiver
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings, load_settings

BEGINNING = {DagsterEventType.RUN_START}
ENDINGS = {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE}


@pytest.fixture
def here() -> Iterator[Receiver]:
    with receiver() as listening:
        yield listening


@pytest.fixture
def settings(tmp_path, here: Receiver) -> Settings:
    return load_settings(home=tmp_path, openlineage_url=here.url)


def graph(fails: bool = False) -> list[AssetsDefinition]:
    """Raw table, feature table, dataset, model: with the metadata that ours have."""

    @asset(key=["u", "raw", "t"])
    def raw() -> Output[int]:
        return Output(1, data_version=DataVersion("digest"), metadata={"delta_version": 7})

    @asset(key=["u", "features", "ticks"], deps=[AssetKey(["u", "raw", "t"])])
    def ticks() -> Output[int]:
        return Output(1, metadata={"delta_version": 3, "read_versions": MetadataValue.json({"t": 6})})

    @asset(key=["u", "training", "dataset"], deps=[AssetKey(["u", "features", "ticks"])])
    def dataset() -> Output[int]:
        return Output(1, metadata={"delta_version": 5, "inputs": ["u/features/ticks@3", "u/features/spine@2"]})

    @asset(key=["u", "training", "model"], deps=[AssetKey(["u", "training", "dataset"])])
    def model() -> Output[int]:
        if fails:
            raise ThroughlineError("The training was lost.\nAnd a page of details.")
        return Output(1, data_version=DataVersion("sha"))

    return [raw, ticks, dataset, model]


def run(instance: DagsterInstance, fails: bool = False) -> ExecuteInProcessResult:
    job = Definitions(assets=graph(fails)).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, raise_on_error=False)


def send_run(
    settings: Settings, instance: DagsterInstance, done: ExecuteInProcessResult, began: bool = False
) -> SkipReason:
    """By the sensor for how the run ended, or by the one for runs that begin."""
    status = DagsterRunStatus.STARTED if began else done.dagster_run.status
    sensor = next(each for each in lineage_events(settings).sensors if each.name.endswith(status.value.lower()))
    context = build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_event=next(each for each in done.all_events if each.event_type in (BEGINNING if began else ENDINGS)),
        dagster_instance=instance,
        dagster_run=instance.get_run_by_id(done.run_id),
    )
    return sensor(context)


def test_without_a_receiver_there_is_no_sensor(tmp_path) -> None:
    assert not lineage_events(load_settings(home=tmp_path)).sensors


def test_with_a_receiver_the_start_of_a_run_and_every_way_in_which_it_ends_are_sent(settings: Settings) -> None:
    sensors = list(lineage_events(settings).sensors)
    assert {each.name for each in sensors} == {
        f"openlineage_{status.value.lower()}" for status in (DagsterRunStatus.STARTED, *ENDED)
    }
    assert {each.default_status for each in sensors} == {DefaultSensorStatus.RUNNING}


def test_each_step_is_sent_with_its_inputs_and_outputs(settings: Settings, here: Receiver) -> None:
    with DagsterInstance.ephemeral() as instance:
        done = run(instance)
        assert send_run(settings, instance, done).skip_message == f"run {done.run_id} sent: success, 4 steps"
    steps = {name.partition(".")[2] for name, _ in here.jobs()}
    assert steps == {"u__raw__t", "u__features__ticks", "u__training__dataset", "u__training__model", ""}
    assert [state for _, state in here.jobs()] == ["START", "COMPLETE"] * 5
    *of_steps, began, ended = here.events
    assert (began.run.runId, ended.run.runId, "parent" in ended.run.facets) == (done.run_id, done.run_id, False)
    assert began.eventTime <= min(event.eventTime for event in of_steps)
    assert ended.eventTime >= max(event.eventTime for event in of_steps)
    ends = {event.job.name.rpartition("__")[2]: event for event in here.events if event.eventType.value == "COMPLETE"}

    def tables(step: str, side: str) -> dict[str, str]:
        return {each.name: each.facets["version"].datasetVersion for each in getattr(ends[step], side)}

    assert tables("t", "outputs") == {"u/raw/t": "7"}
    assert tables("ticks", "inputs") == {"u/raw/t": "6"}  # the version that was read, not the newest
    assert tables("dataset", "inputs") == {"u/features/ticks": "3", "u/features/spine": "2"}
    assert list(tables("model", "inputs")) == ["u/training/dataset"]
    assert tables("model", "outputs") == {"u/training/model": "sha"}
    assert {event.run.facets["parent"].run["runId"] for event in of_steps} == {done.run_id}
    assert {event.run.facets["parent"].job["name"] for event in of_steps} == {ended.job.name}


def test_the_start_of_a_run_is_sent_before_it_has_ended(settings: Settings, here: Receiver) -> None:
    with DagsterInstance.ephemeral() as instance:
        done = run(instance)
        send_run(settings, instance, done, began=True)
        assert here.jobs() == [("__ASSET_JOB", "START")]
        assert here.events[0].run.runId == done.run_id


def test_a_failed_step_is_sent_with_its_error_and_later_steps_are_not(settings: Settings, here: Receiver) -> None:
    with DagsterInstance.ephemeral() as instance:
        done = run(instance, fails=True)
        assert done.dagster_run.status == DagsterRunStatus.FAILURE
        send_run(settings, instance, done)
    assert here.jobs()[-3:] == [
        ("__ASSET_JOB.u__training__model", "FAIL"), ("__ASSET_JOB", "START"), ("__ASSET_JOB", "FAIL")
    ]  # fmt: skip
    assert here.events[-1].run.facets["errorMessage"] == here.events[-3].run.facets["errorMessage"]
    message = here.events[-1].run.facets["errorMessage"].message
    assert "The training was lost." in message
    assert "details" not in message


def test_nothing_is_sent_of_a_run_that_was_cancelled_in_the_queue(settings: Settings, here: Receiver) -> None:
    job = Definitions(assets=graph()).resolve_implicit_global_asset_job_def()
    with DagsterInstance.ephemeral() as instance:
        waiting = instance.create_run_for_job(job)
        event = instance.report_run_canceled(waiting)
        sensor = next(each for each in lineage_events(settings).sensors if each.name.endswith("canceled"))
        context = build_run_status_sensor_context(
            sensor_name=sensor.name,
            dagster_event=event,
            dagster_instance=instance,
            dagster_run=instance.get_run_by_id(waiting.run_id),
        )
        assert sensor(context).skip_message == f"run {waiting.run_id} never began: canceled"
    assert here.jobs() == []


def test_a_receiver_that_is_down_is_a_line_in_the_sensors_log(tmp_path, here: Receiver) -> None:
    here.status = 503
    settings = load_settings(home=tmp_path, openlineage_url=here.url)
    with DagsterInstance.ephemeral() as instance:
        done = run(instance)
        assert done.success
        assert "0 of 10 events accepted by" in send_run(settings, instance, done).skip_message
