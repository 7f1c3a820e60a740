"""Every prediction is counted once, with the label known by then, or as pending, or as never to be labelled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from deltalake import write_deltalake

from throughline.events import feedback
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import read
from throughline.monitoring.outcomes import join_outcomes, losses, write_outcomes
from throughline.records import InferenceLogRecord
from throughline.usecase import UseCase, get_usecase

DEPARTURE = datetime(2013, 4, 1, 13, tzinfo=UTC)
HOUR, TICK = timedelta(hours=1), timedelta(microseconds=1)
DELAY = timedelta(hours=24)
SPINE = {
    "scheduled_departure": pl.Datetime("us", "UTC"),
    "carrier": pl.String,
    "flight": pl.Int64,
    "origin": pl.String,
    "available_at": pl.Datetime("us", "UTC"),
    "label": pl.Int32,
    "label_available_at": pl.Datetime("us", "UTC"),
}
LOG = {
    "id": pl.String,
    "time": pl.Datetime("us", "UTC"),
    "row_key": pl.String,
    "model_name": pl.String,
    "model_version": pl.Int64,
    "revision": pl.String,
    "role": pl.String,
    "score": pl.Float64,
    "decision": pl.String,
    "latency_ms": pl.Float64,
}


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def published(flight: int, label: int | None, known_at: datetime | None) -> list[dict[str, Any]]:
    """A week ahead, and again with its label."""
    identity = {"scheduled_departure": DEPARTURE, "carrier": "B6", "flight": flight, "origin": "JFK"}
    announced = {**identity, "available_at": DEPARTURE - 168 * HOUR, "label": None, "label_available_at": None}
    if known_at is None:
        return [announced]
    return [announced, {**identity, "available_at": known_at, "label": label, "label_available_at": known_at}]


def spine_of(*flights: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([row for flight in flights for row in flight], schema=SPINE)


def predicted(flight: int, id: str | None = None, time: datetime = DEPARTURE - 2 * HOUR, **more: Any) -> dict[str, Any]:
    return {
        "id": id or f"p{flight}",
        "time": time,
        "row_key": f"2013-04-01T13:00:00Z|B6|{flight}|JFK",
        "model_name": "m",
        "model_version": 1,
        "revision": "v1",
        "role": "stable",
        "score": 0.4,
        "decision": "late",
        "latency_ms": 1.0,
        **more,
    }


def outcome(
    usecase: UseCase, spine: list[list[dict[str, Any]]], log: list[dict[str, Any]], as_of: datetime
) -> list[dict[str, Any]]:
    joined = join_outcomes(usecase, pl.DataFrame(log, schema=LOG), spine_of(*spine), as_of)
    return joined.to_dicts()


def test_a_label_known_after_as_of_is_not_seen(usecase: UseCase) -> None:
    arrived = DEPARTURE + 3 * HOUR
    args = usecase, [published(1, 1, arrived)], [predicted(1)]
    (before,) = outcome(*args, arrived - TICK)
    assert (before["label"], before["label_available_at"], before["state"]) == (None, None, "pending")
    (after,) = outcome(*args, arrived)
    assert (after["label"], after["label_available_at"], after["state"]) == (1, arrived, "labelled")


def test_waiting_ends_when_the_declared_delay_has_passed(usecase: UseCase) -> None:
    args = usecase, [published(1, None, None)], [predicted(1)]
    assert outcome(*args, DEPARTURE + DELAY)[0]["state"] == "pending"
    assert outcome(*args, DEPARTURE + DELAY + TICK)[0]["state"] == "never"


def test_a_label_that_comes_after_all_is_taken(usecase: UseCase) -> None:
    late = DEPARTURE + DELAY + 5 * HOUR
    args = usecase, [published(1, 0, late)], [predicted(1)]
    assert outcome(*args, late - TICK)[0]["state"] == "never"
    assert outcome(*args, late)[0]["state"] == "labelled"


def test_a_corrected_label_counts_from_when_it_was_corrected(usecase: UseCase) -> None:
    corrected = DEPARTURE + 5 * HOUR
    first, second = published(1, 0, DEPARTURE + 3 * HOUR), published(1, 1, corrected)
    args = usecase, [second, first], [predicted(1)]
    assert outcome(*args, corrected - TICK)[0]["label"] == 0
    assert outcome(*args, corrected)[0]["label"] == 1


def test_an_id_counts_once(usecase: UseCase) -> None:
    log = [predicted(1, "a"), predicted(1, "a"), predicted(1, "b")]
    assert [row["id"] for row in outcome(usecase, [published(1, 1, DEPARTURE)], log, DEPARTURE)] == ["a", "b"]


def test_of_an_id_that_came_twice_the_first_row_counts(usecase: UseCase) -> None:
    log = [predicted(1, "a", score=0.4), predicted(2, "b"), predicted(1, "a", score=0.9, latency_ms=7.0)]
    found = outcome(usecase, [published(1, 1, DEPARTURE), published(2, 0, DEPARTURE)], log, DEPARTURE)
    assert [(row["id"], row["score"]) for row in found] == [("a", 0.4), ("b", 0.4)]


def test_a_prediction_of_something_never_published_stays_in_the_count_without_a_label(usecase: UseCase) -> None:
    (row,) = outcome(usecase, [published(1, 1, DEPARTURE)], [predicted(999)], DEPARTURE)
    assert (row["label"], row["state"]) == (None, "pending")


def test_a_prediction_made_after_as_of_is_not_there_yet(usecase: UseCase) -> None:
    assert outcome(usecase, [], [predicted(1, time=DEPARTURE + TICK)], DEPARTURE) == []
    assert len(outcome(usecase, [], [predicted(1, time=DEPARTURE)], DEPARTURE)) == 1


def test_each_prediction_gets_its_own_outcome_in_the_order_of_the_log(usecase: UseCase) -> None:
    spine = [published(n, n % 2, DEPARTURE) for n in range(50)]
    log = [predicted(n) for n in reversed(range(50))]
    rows = outcome(usecase, spine, log, DEPARTURE)
    assert [row["id"] for row in rows] == [f"p{n}" for n in reversed(range(50))]
    assert all(row["label"] == int(row["id"][1:]) % 2 for row in rows)


def reports(*rows: tuple[str, int, datetime, datetime]) -> pl.DataFrame:
    """Reports as (prediction, label, event time, knowledge time)."""
    columns = ["prediction_id", "label", "event_time", "available_at"]
    made = [{**dict.fromkeys(feedback.SCHEMA), **dict(zip(columns, row, strict=True)), "id": str(row)} for row in rows]
    return pl.DataFrame(made, schema=feedback.SCHEMA)


def joined(usecase: UseCase, spine: list, outcomes: pl.DataFrame, as_of: datetime = DEPARTURE) -> dict[str, tuple]:
    log = pl.DataFrame([predicted(n) for n in (1, 2)], schema=LOG)
    rows = join_outcomes(usecase, log, spine_of(*spine), as_of, outcomes)
    columns = ("label", "label_available_at", "label_from", "label_conflict", "state")
    return {row["id"]: tuple(row[name] for name in columns) for row in rows.to_dicts()}


def test_a_reported_outcome_is_the_label_of_its_prediction_where_there_is_no_other(usecase: UseCase) -> None:
    outcomes = reports(("p2", 1, DEPARTURE - HOUR, DEPARTURE - HOUR))
    rows = joined(usecase, [published(1, None, None), published(2, None, None)], outcomes)
    assert rows["p1"] == (None, None, None, False, "pending")
    assert rows["p2"] == (1, DEPARTURE - HOUR, "feedback", False, "labelled")
    # also of one that the declaration counts as never labelled, or that the spine does not have
    late = joined(usecase, [published(1, None, None)], outcomes, DEPARTURE + 2 * DELAY)
    assert (late["p1"][-1], late["p2"][-1]) == ("never", "labelled")


@pytest.mark.parametrize(("reported", "conflict"), [(1, False), (0, True)])
def test_the_label_of_the_spine_wins_over_a_report_and_a_conflict_is_marked(
    usecase: UseCase, reported: int, conflict: bool
) -> None:
    outcomes = reports(("p1", reported, DEPARTURE, DEPARTURE), ("unknown", 1, DEPARTURE, DEPARTURE))
    rows = joined(usecase, [published(1, 1, DEPARTURE)], outcomes)
    assert rows["p1"] == (1, DEPARTURE, "spine", conflict, "labelled")
    assert set(rows) == {"p1", "p2"}


def test_of_several_reports_the_newest_that_is_known_counts(usecase: UseCase) -> None:
    outcomes = reports(
        ("p1", 0, DEPARTURE - 2 * HOUR, DEPARTURE),
        ("p1", 1, DEPARTURE - HOUR, DEPARTURE - HOUR),
        ("p1", 0, DEPARTURE, DEPARTURE + TICK),
        ("p2", 1, DEPARTURE, DEPARTURE + TICK),
    )
    rows = joined(usecase, [], outcomes)
    assert (rows["p1"][0], rows["p2"][0]) == (1, None)
    assert joined(usecase, [], outcomes, DEPARTURE + TICK)["p1"][0] == 0


def test_only_predictions_of_production_traffic_have_outcomes(usecase: UseCase) -> None:
    classes = [None, "production", "load_test", "shadow", "test"]
    log = pl.DataFrame(
        [predicted(n) | {"traffic": traffic} for n, traffic in enumerate(classes)], schema={**LOG, "traffic": pl.String}
    )
    rows = join_outcomes(usecase, log, spine_of(), DEPARTURE)
    assert rows["id"].to_list() == ["p0", "p1"]


def test_a_key_published_twice_does_not_double_its_predictions(usecase: UseCase) -> None:
    spine = [published(1, None, None), published(1, 1, DEPARTURE)]
    assert [row["label"] for row in outcome(usecase, spine, [predicted(1)], DEPARTURE)] == [1]


def test_written_outcomes_are_counted_from_pinned_versions(usecase: UseCase, tmp_path: Any) -> None:
    settings = Settings(home=tmp_path)
    spine_path = settings.table_path(usecase.name, "features", "labelled_flights")
    log_path = settings.table_path(usecase.name, "monitoring", "inference_log")
    spine = spine_of(published(1, 1, DEPARTURE), published(2, None, None))
    log = pl.DataFrame([predicted(1), predicted(2)], schema=LOG)
    write_deltalake(str(spine_path), spine.to_arrow())
    write_deltalake(str(log_path), log.to_arrow())
    outcomes = reports(("p1", 0, DEPARTURE, DEPARTURE), ("unknown", 1, DEPARTURE, DEPARTURE - 40 * DELAY))
    write_deltalake(str(settings.table_path(usecase.name, "monitoring", "feedback")), outcomes.to_arrow())
    # newer versions than the pinned ones must not be seen
    write_deltalake(str(spine_path), spine.clear().to_arrow(), mode="overwrite")
    write_deltalake(str(log_path), pl.DataFrame([predicted(3)], schema=LOG).to_arrow(), mode="append")
    pinned = TableReference(f"{usecase.name}/features/labelled_flights", 0)
    record = write_outcomes(
        settings,
        usecase,
        InferenceLogRecord(
            table=TableReference(f"{usecase.name}/monitoring/inference_log", 0),
            feedback=TableReference(f"{usecase.name}/monitoring/feedback", 0),
            received=2,
            written=2,
            lost=0,
        ),
        pinned,
        DEPARTURE + 2 * DELAY,
    )
    shown = record.model_dump(include={"predictions", "labelled", "pending", "never_labelled", "log_complete"})
    assert (record.from_feedback, record.conflicts, record.feedback_waiting, record.feedback_expired) == (0, 1, 0, 1)
    assert losses(settings, usecase.name) == {"v1": (1, pytest.approx((0.4 - 1) ** 2))}
    assert shown == {
        "predictions": 2,
        "labelled": 1,
        "pending": 0,
        "never_labelled": 1,
        "log_complete": True,
    }
    assert read(settings, record.table).collect()["state"].to_list() == ["labelled", "never"]


def test_before_the_first_event_there_is_an_empty_table_and_a_lost_event_is_no_complete_log(
    usecase: UseCase, tmp_path: Any
) -> None:
    settings = Settings(home=tmp_path)
    path = settings.table_path(usecase.name, "features", "labelled_flights")
    write_deltalake(str(path), spine_of(published(1, 1, DEPARTURE)).to_arrow())
    pinned = TableReference(f"{usecase.name}/features/labelled_flights", 0)
    log = InferenceLogRecord(table=None, received=0, written=0, lost=1)
    record = write_outcomes(settings, usecase, log, pinned, DEPARTURE)
    assert (record.predictions, record.log_complete) == (0, False)
    assert read(settings, record.table).collect().height == 0
