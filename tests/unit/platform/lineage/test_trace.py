"""A prediction is followed back to its rows, code and decision; a step that cannot be had gives its reason."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from tests.support import traced_home as home
from tests.support.traced_home import AIRCRAFT, HOUR, NAME, NOW, SHA, WEEK, FakeRegistry
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import replace_days
from throughline.lineage.trace import Step, Trace, Tracer
from throughline.records import FeatureStoreRecord
from throughline.records.store import find_record
from throughline.registry import history
from throughline.usecase import get_usecase

KINDS = [
    "prediction", "revision", "model_version", "gate_decision", "run", "dataset", "feature_table",
    "raw_table", "raw_table", "code",
]  # fmt: skip
"""Those of a prediction that was served from the version that its model was trained on."""


class Home:
    """A made home, and tracers of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.raw, self.ticks, self.registry = home.make_home(settings)
        self.numbers: dict[str, int] = {}

    def row(self, aircraft: str = AIRCRAFT[0], at: datetime = NOW) -> dict[str, Any]:
        mine = self.ticks.filter((pl.col("tailnum") == aircraft) & (pl.col("event_timestamp") == at))
        return mine.row(0, named=True)

    def predict(self, row: dict[str, Any] | None = None, source: str = "server-1", **more: Any) -> str:
        self.numbers[source] = self.numbers.get(source, 0) + 1
        given = {"wall_time": datetime.now(UTC), **more}
        event = home.prediction(row or self.row(), self.numbers[source], source=source, **given)
        return home.log(self.settings, [event])[0]

    def tracer(self, registry: Any = None, **options: Any) -> Tracer:
        return Tracer(self.settings, get_usecase(NAME), registry or self.registry, **options)

    def trace(self, prediction_id: str, **options: Any) -> Trace:
        return self.tracer(**options).trace(prediction_id)


@pytest.fixture
def made(settings: Settings) -> Home:
    return Home(settings)


def only(found: Trace, kind: str) -> Step:
    (step,) = found.of(kind)
    return step


def raw_of(found: Trace, table: str) -> dict[str, Any]:
    (part,) = [part for part in only(found, "feature_table").facts["raw"] if f"/{table}@" in part["table"]]
    return part


def test_every_step_of_the_thread_is_there_and_in_order(made: Home) -> None:
    found = made.trace(made.predict())
    assert [step.kind for step in found.steps] == KINDS
    assert found.gaps == []
    it = {step.kind: step for step in found.steps}
    assert it["prediction"].facts["decision"] == "late"
    assert (it["revision"].id, it["revision"].facts["role"]) == (f"v1-{SHA[:12]}", "stable")
    assert (it["model_version"].id, it["model_version"].version) == (NAME, 1)
    assert it["gate_decision"].facts["rules"] == ["auc pass (0.7600, at least 0.72)"]
    assert it["run"].id == home.RUN
    assert it["dataset"].facts["fingerprint"] == home.DIGEST
    assert it["feature_table"].facts["used_for"] == ["training", "serving"]
    assert it["code"].id == home.COMMIT
    departures, planes = found.of("raw_table")
    assert (departures.id, departures.version) == (f"{NAME}/raw/flight_departures", 0)
    assert str(departures.facts["partitions"]["training"]["first"]) == "2013-03-20"
    assert planes.facts["partitions"] == {"training": None, "serving": None}  # a register has no days


def test_a_step_is_one_flat_object_with_instants_in_utc(made: Home) -> None:
    for step in made.trace(made.predict()).steps:
        assert list(step.to_json())[:4] == ["kind", "id", "version", "missing"]
    first = made.trace(made.predict()).steps[0].to_json()
    assert first["time"].endswith("Z")


@pytest.mark.parametrize("aircraft", AIRCRAFT)
def test_a_served_value_is_what_its_raw_rows_give(made: Home, aircraft: str) -> None:
    at = NOW - 5 * HOUR
    found = made.trace(made.predict(made.row(aircraft, at)), raw_rows=1000)
    features = {each["name"]: each for each in only(found, "prediction").facts["features"]}
    part = raw_of(found, "flight_departures")
    assert part["of"] == len(part["rows"])
    window = [row for row in part["rows"] if at - WEEK <= row["available_at"] < at]
    assert {row["tailnum"] for row in window} == {aircraft}
    assert len(window) == features["aircraft_departures_168h"]["value"] > 30
    mean = sum(row["dep_delay"] for row in window) / len(window)
    assert mean == pytest.approx(features["aircraft_delay_168h"]["value"])
    assert features["aircraft_delay_168h"]["event_time"] == at
    assert features["aircraft_delay_168h"]["table"] == f"{NAME}/features/aircraft_ticks@0"
    assert raw_of(found, "planes")["rows"][0]["seats"] == features["aircraft_seats"]["value"]


def test_raw_rows_are_the_newest_first_and_bounded_and_counted(made: Home) -> None:
    part = raw_of(made.trace(made.predict(), raw_rows=3), "flight_departures")
    times = [row["available_at"] for row in part["rows"]]
    assert times == sorted(times, reverse=True)
    assert len(times) == 3
    assert part["of"] > 30
    assert set(part["rows"][0]) == {
        "flight_id", "event_time", "available_at", "day", "ingestion_run_id", "dep_delay", "tailnum"
    }  # fmt: skip


def test_a_row_known_at_the_instant_of_the_tick_is_not_behind_the_value(made: Home) -> None:
    at = datetime(2013, 3, 30, 6, tzinfo=UTC)
    assert made.raw.filter((pl.col("available_at") == at) & (pl.col("tailnum") == AIRCRAFT[0])).height == 1
    part = raw_of(made.trace(made.predict(made.row(AIRCRAFT[0], at)), raw_rows=1000), "flight_departures")
    assert max(row["available_at"] for row in part["rows"]) == at - 5 * HOUR


def test_rows_are_read_at_the_version_that_the_table_was_made_from(made: Home) -> None:
    prediction = made.predict()
    corrected = made.raw.with_columns(dep_delay=pl.lit(999.0))
    replace_days(made.settings.table_path(NAME, "raw", "flight_departures"), corrected, home.FIRST, home.LAST)
    part = raw_of(made.trace(prediction), "flight_departures")
    assert part["table"].endswith("@0")
    assert 999.0 not in {row["dep_delay"] for row in part["rows"]}


def test_a_table_written_after_the_prediction_is_not_where_it_came_from(made: Home) -> None:
    before = made.predict()
    changed = made.ticks.with_columns(pl.col("aircraft_delay_168h") + 1)
    pinned = home.write_ticks(made.settings, changed, {"flight_departures": 0, "planes": 0})
    home.store(made.settings, pinned)
    after = made.predict({**made.row(), "aircraft_delay_168h": made.row()["aircraft_delay_168h"] + 1})
    tracer = made.tracer()
    assert [step.version for step in tracer.trace(before).of("feature_table")] == [0]
    # the training read version 0, the prediction version 1
    assert [step.version for step in tracer.trace(after).of("feature_table")] == [0, 1]
    assert not tracer.trace(after).gaps


def test_a_prediction_made_before_its_table_was_brought_online_is_found_in_the_version_before(made: Home) -> None:
    changed = made.ticks.with_columns(pl.col("aircraft_delay_168h") + 1)
    home.write_ticks(made.settings, changed, {"flight_departures": 0, "planes": 0})
    found = made.trace(made.predict())  # the values of version 0, at a time when 1 was there
    assert [step.version for step in found.of("feature_table")] == [0]
    assert not found.gaps


def test_when_a_version_is_gone_the_pinned_one_is_searched(made: Home) -> None:
    prediction = made.predict()
    pinned = home.write_ticks(made.settings, made.ticks, {"flight_departures": 0, "planes": 0})
    home.store(made.settings, pinned)
    table = DeltaTable(str(made.settings.table_path(NAME, "features", "aircraft_ticks")))
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    found = made.trace(prediction)
    assert [step.version for step in found.of("feature_table") if "view" in step.facts] == [1]


def test_values_that_no_version_holds_are_missing(made: Home) -> None:
    found = made.trace(made.predict({**made.row(), "aircraft_delay_168h": 123.0}))
    step = only(found, "feature_table")
    assert step.facts["matches"] is False
    assert "not the values that were served" in step.missing
    assert found.gaps


def test_an_entity_without_a_row_has_a_note_and_the_thread_is_complete(made: Home) -> None:
    nothing = dict.fromkeys(["aircraft_departures_168h", "aircraft_delay_168h", "aircraft_seats"])
    row = {**made.row(), **nothing, "tailnum": None}
    found = made.trace(made.predict(row, feature_times={"aircraft_ticks": None}))
    seats = next(each for each in found.steps[0].facts["features"] if each["name"] == "aircraft_seats")
    assert (seats["value"], seats["table"]) == (None, None)
    assert "no row of this entity" in seats["note"]
    assert not found.gaps


def test_a_pushed_row_is_found_in_the_table_of_pushed_rows_and_has_no_raw_rows(made: Home) -> None:
    at = NOW + timedelta(minutes=10)
    pushed = {**made.row(), "event_timestamp": at, "available_at": at, "aircraft_delay_168h": 77.0}
    rows = pl.DataFrame([pushed], schema=made.ticks.schema)
    day = pushed["day"]
    replace_days(made.settings.table_path(NAME, "features", "aircraft_ticks_pushed"), rows, day, day)
    found = made.trace(made.predict(pushed))
    served = found.of("feature_table")[-1]
    assert (served.id, served.facts["raw"]) == (f"{NAME}/features/aircraft_ticks_pushed", [])
    assert not found.gaps


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("departure_hour", 3.0, "departure_hour was 3.0, and the request gives 17.0 now"),
        ("forgotten", 1.0, "forgotten is neither in a registered feature view nor in the request"),
    ],
)
def test_a_value_of_unknown_origin_is_a_gap(made: Home, name: str, value: float, reason: str) -> None:
    event = home.prediction(made.row(), 1, datetime.now(UTC))
    event = event.model_copy(update={"features": {**event.features, name: value}})
    (prediction,) = home.log(made.settings, [event])
    found = made.trace(prediction)
    assert found.gaps == [f"prediction: {reason}"]


# Revision and decision


def test_a_share_is_of_the_predictions_that_answered_in_that_hour(made: Home) -> None:
    mine = [made.predict() for _ in range(3)]
    made.predict(revision="v2-0123456789ab", model_version=2, role="canary", source="server-2")
    for _ in range(5):
        made.predict(revision="v3-0123456789ab", model_version=3, role="shadow", source="server-3")
    made.predict(made.row(at=NOW - HOUR))
    revision = only(made.trace(mine[0]), "revision")
    assert revision.facts["share"] == 0.75
    assert revision.facts["share_of"] == {"hour": NOW, "predictions": 4, "log_complete": True}
    assert revision.facts["champion_since"] is not None


def test_a_revision_of_another_file_than_the_registered_one_is_a_gap(made: Home) -> None:
    found = made.trace(made.predict(revision="v1-0123456789ab"))
    assert found.gaps == [f"revision: its file is not the one that {NAME}/1 was registered with"]


def test_the_digest_of_the_file_that_predicted_is_compared_with_the_registered_one(made: Home) -> None:
    """An ungated file served under a released version's name, by a revision edited by hand."""
    assert only(made.trace(made.predict(model_sha256=home.SHA)), "revision").missing is None
    other = made.trace(made.predict(model_sha256=home.SHA[:-2] + "00"))
    assert other.gaps == [f"revision: its file is not the one that {NAME}/1 was registered with"]


def test_a_decision_from_after_the_prediction_did_not_release_it(made: Home) -> None:
    early = made.predict(wall_time=datetime.now(UTC) - timedelta(days=1))
    found = made.trace(early)
    step = only(found, "gate_decision")
    assert "holds no decision about flight_delay/1 from before" in step.missing
    assert found.of("code")[0].missing is None


def test_the_decision_is_the_last_one_before_and_names_who_approved(made: Home) -> None:
    settings = made.settings
    rejected = home.decision(decision="wait").model_dump_json()
    history.append(settings, NAME, history.event_of("decided", f"{NAME}/1", "graph", new=rejected))
    history.append(settings, NAME, history.event_of("approved", f"{NAME}/1", "ada", new=SHA, reason="looks right"))
    tracer = made.tracer()
    step = only(tracer.trace(made.predict()), "gate_decision")
    assert step.facts["decision"] == "wait"
    assert [(each["actor"], each["reason"]) for each in step.facts["approved_by"]] == [("ada", "looks right")]
    history.append(
        settings, NAME, history.event_of("decided", f"{NAME}/1", "graph", new=home.decision().model_dump_json())
    )
    assert only(tracer.trace(made.predict()), "gate_decision").facts["decision"] == "release", "decided since"


def test_a_decision_that_cannot_be_read_is_a_gap(made: Home) -> None:
    history.append(made.settings, NAME, history.event_of("decided", f"{NAME}/1", "graph", new="{}"))
    assert "no readable decision" in only(made.trace(made.predict()), "gate_decision").missing


def test_without_mlflow_the_other_steps_are_complete(made: Home) -> None:
    registry = FakeRegistry(None, down="MLflow does not answer")
    found = made.trace(made.predict(), registry=registry)
    lacking = {step.kind: step.missing for step in found.steps if step.missing}
    assert lacking == dict.fromkeys(["model_version", "run", "dataset", "code"], "MLflow does not answer")
    assert only(found, "feature_table").facts["matches"]
    registry.down, registry._dataset = None, made.registry._dataset
    assert made.trace(made.predict(), registry=registry).gaps == [], "a failure is not remembered"


def test_the_homes_own_mlflow_is_the_default_registry(made: Home) -> None:
    prediction = made.predict()
    found = Tracer(made.settings, get_usecase(NAME)).trace(prediction)
    assert "throughline up" in only(found, "model_version").missing


def test_another_dataset_than_the_version_names_is_a_gap(made: Home) -> None:
    other = FakeRegistry(made.registry._dataset.model_copy(update={"fingerprint": "99" * 32}))
    assert "the version names cdcdcdcdcdcd" in only(made.trace(made.predict(), registry=other), "dataset").missing


def test_a_table_whose_history_does_not_name_its_inputs_is_a_gap(made: Home) -> None:
    path = made.settings.table_path(NAME, "features", "aircraft_ticks")
    made.ticks.write_delta(str(path), mode="overwrite")
    found = made.trace(made.predict())
    assert any("does not name what version 1 was made from" in gap for gap in found.gaps)


# Finding the prediction


def test_an_unknown_id_is_one_line_with_the_size_of_the_log(made: Home) -> None:
    made.predict()
    tracer = made.tracer()
    with pytest.raises(ThroughlineError, match=r"is not logged: .*inference_log@0 holds 1 predictions\.$") as refused:
        tracer.trace("00000000-0000-0000-0000-000000000000")
    assert "\n" not in str(refused.value)
    with pytest.raises(ThroughlineError, match="'abc' is no prediction id"):
        tracer.trace("abc")


def test_before_the_first_prediction_nothing_is_logged(made: Home) -> None:
    with pytest.raises(ThroughlineError, match="nothing of flight_delay was logged yet"):
        made.trace("00000000-0000-0000-0000-000000000000")


def test_with_events_missing_the_log_is_reported_incomplete(made: Home) -> None:
    made.predict()
    made.numbers["server-1"] = 4
    found = made.trace(made.predict())
    assert only(found, "prediction").facts["log"]["lost"] == 3
    assert only(found, "revision").facts["share_of"]["log_complete"] is False
    with pytest.raises(ThroughlineError, match="incomplete: 3 events are missing"):
        made.trace("00000000-0000-0000-0000-000000000000")


def test_predictions_logged_since_or_compacted_are_found(made: Home) -> None:
    tracer = made.tracer()
    ids = [made.predict(made.row(AIRCRAFT[number % 5])) for number in range(6)]
    assert [tracer.trace(each).prediction_id for each in ids] == ids
    path = made.settings.table_path(NAME, "monitoring", "inference_log")
    DeltaTable(str(path)).optimize.compact()
    DeltaTable(str(path)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    ids.append(made.predict())
    found = [tracer.trace(each) for each in reversed(ids)]
    assert [each.prediction_id for each in found] == ids[::-1]
    assert {each.steps[0].facts["log"]["predictions"] for each in found} == {7}


def test_in_a_home_without_a_feature_store_the_origin_of_values_is_missing(made: Home) -> None:
    shutil.rmtree(made.settings.records)
    assert find_record(made.settings, (NAME, "features", "feature_store"), FeatureStoreRecord) is None
    found = made.trace(made.predict())
    assert "aircraft_seats is neither in a registered feature view" in only(found, "prediction").missing


def test_a_thousand_traces_are_complete(made: Home) -> None:
    """How long they take is for `benchmarks.trace`."""
    drawn, wall = random.Random(7), datetime.now(UTC)
    rows = made.ticks.to_dicts()
    events = [home.prediction(drawn.choice(rows), number, wall) for number in range(1, 1501)]
    tracer = made.tracer()
    chosen = drawn.sample(home.log(made.settings, events), 1000)
    assert [gap for prediction in chosen for gap in tracer.trace(prediction).gaps] == []
