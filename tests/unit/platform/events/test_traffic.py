"""Only production traffic is counted; a log from before there were classes of traffic is all production."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.support.events import NOW, event, rows
from throughline.catalogue.features import read_usage
from throughline.events.log import PredictionLog
from throughline.events.schema import LOG_SCHEMA, InferenceEvent, production
from throughline.events.table import LogTable
from throughline.foundation.references import ModelReference
from throughline.foundation.settings import Settings
from throughline.usecase import get_usecase

NAME, MODEL = "flight_delay", ModelReference("flight_delay", 3)
SHA = "ab" * 32


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


def mixed() -> list[InferenceEvent]:
    """Three predictions of production and one of each other class, by one revision within an hour."""
    classes = ["production"] * 3 + ["load_test", "shadow", "test"]
    return [event(number, traffic=traffic) for number, traffic in enumerate(classes, 1)]


def test_shares_and_counts_are_of_production(settings):
    events = mixed()
    LogTable(settings, NAME).append(rows(events))
    log = PredictionLog(settings, NAME)
    assert (log.predictions, log.lost) == (3, 0)
    assert log.per_model() == {MODEL: 3}
    share = log.share("v3-abc", NOW)
    assert (share.predictions, share.of) == (3, 3)
    assert log.made_within([(events[0].wall_time - timedelta(hours=1), None)]) == 3
    assert [log.find(str(each.id))["traffic"] for each in events] == [each.traffic for each in events]
    assert "holds 6 predictions" in log.described


def test_reads_of_a_feature_are_those_of_production(settings):
    LogTable(settings, NAME).append(rows(mixed()))
    assert read_usage(settings, get_usecase(NAME)).reads_of(["hour"]) == 3


def test_a_log_written_before_there_were_classes_is_read_and_gets_the_columns_with_the_next_event(settings):
    older, new = event(1), event(2, traffic="test", model_sha256=SHA)
    path = settings.table_path(NAME, "monitoring", "inference_log")
    written = rows([older]).drop("traffic", "model_sha256")
    write_deltalake(str(path), written.to_arrow(), partition_by=["day"])
    log = PredictionLog(settings, NAME)
    assert (log.predictions, log.find(str(older.id))["traffic"]) == (1, "production")
    assert production(pl.scan_delta(str(path))).collect().height == 1

    assert LogTable(settings, NAME).append(rows([older, new])) == 1
    assert {field.name for field in DeltaTable(str(path)).schema().fields} == set(LOG_SCHEMA)
    assert log.refresh()
    assert log.predictions == 1
    found = [log.find(str(each.id)) for each in (older, new)]
    assert [(each["traffic"], each["model_sha256"]) for each in found] == [("production", None), ("test", SHA)]
    assert production(pl.scan_delta(str(path))).collect()["id"].to_list() == [str(older.id)]
