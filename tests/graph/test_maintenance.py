"""Maintenance runs every night, and does nothing when it is unknown what is pinned."""

from __future__ import annotations

from datetime import date, datetime
from types import SimpleNamespace

import polars as pl
import pytest
from dagster import DagsterInstance, DefaultScheduleStatus, ExecuteInProcessResult

from assets.maintenance import maintenance, maintenance_job
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import current_version, history, replace_days, scan
from throughline.records import InferenceLogRecord
from throughline.records.store import save_record

TABLE, DAY = "u/monitoring/inference_log", date(2013, 1, 1)


@pytest.fixture
def tables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home with a table of small files, and a registry that pins nothing."""
    from deltalake import write_deltalake

    rows = pl.DataFrame({"day": [DAY], "value": [0]})
    replace_days(settings.lakehouse / TABLE, rows, DAY, DAY)
    for _ in range(3):
        write_deltalake(str(settings.lakehouse / TABLE), rows.to_arrow(), mode="append")
    monkeypatch.setattr("throughline.retention.tables.dataset_tables", lambda settings, name: {})
    monkeypatch.setattr("assets.maintenance.remove_old_versions", lambda settings, name, now: [])
    return settings


def run(settings: Settings) -> ExecuteInProcessResult:
    with DagsterInstance.ephemeral() as instance:
        job = maintenance_job([SimpleNamespace(name="u")])
        return job.execute_in_process(resources={"settings": settings}, instance=instance, raise_on_error=False)


def test_maintenance_runs_every_night() -> None:
    (schedule,) = maintenance([]).schedules
    assert (schedule.job_name, schedule.cron_schedule) == ("maintenance", "30 3 * * *")
    assert schedule.default_status == DefaultScheduleStatus.RUNNING


def test_small_files_are_compacted_and_the_pinned_version_stays(tables: Settings) -> None:
    log = InferenceLogRecord(table=TableReference(TABLE, 1), received=2, written=2, lost=0)
    save_record(tables, ("u", "monitoring", "inference_log"), log)
    assert run(tables).success
    assert history(tables.lakehouse / TABLE)[0].operation == "OPTIMIZE"
    assert scan(tables.lakehouse / TABLE, 1).collect().height == 2


def test_with_an_unreadable_pin_nothing_is_touched(tables: Settings) -> None:
    (tables.records / "u").mkdir(parents=True)
    (tables.records / "u" / "dataset.json").write_text("{")
    before = current_version(tables.lakehouse / TABLE)
    result = run(tables)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "nothing is vacuumed" in failure.event_specific_data.error.cause.message
    assert current_version(tables.lakehouse / TABLE) == before


def test_old_model_versions_go_first_for_they_pin_what_they_were_trained_on(
    tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    monkeypatch.setattr(
        "assets.maintenance.remove_old_versions", lambda settings, name, now: done.append(("versions", name)) or ["u/1"]
    )
    monkeypatch.setattr(
        "throughline.retention.tables.dataset_tables", lambda settings, name: done.append(("pins", name)) or {}
    )
    assert run(tables).success
    assert done == [("versions", "u"), ("pins", "u")]


def test_when_pins_are_unknown_nothing_is_removed(tables: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(settings: Settings, name: str, now: datetime) -> list[str]:
        raise ThroughlineError("revisions.json cannot be read")

    monkeypatch.setattr("assets.maintenance.remove_old_versions", unknown)
    before = current_version(tables.lakehouse / TABLE)
    assert not run(tables).success
    assert current_version(tables.lakehouse / TABLE) == before


def test_a_table_that_cannot_be_maintained_makes_the_run_red_and_the_others_are_done(tables: Settings) -> None:
    rows = pl.DataFrame({"day": [DAY], "value": [0]})
    replace_days(tables.lakehouse / "u/raw/t", rows, DAY, DAY)
    log = InferenceLogRecord(table=TableReference("u/raw/t", 7), received=2, written=2, lost=0)
    save_record(tables, ("u", "monitoring", "inference_log"), log)
    result = run(tables)
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert "u/raw/t: not maintained" in failure.event_specific_data.error.cause.message
    assert history(tables.lakehouse / TABLE)[0].operation == "OPTIMIZE"
    assert current_version(tables.lakehouse / "u/raw/t") == 0
