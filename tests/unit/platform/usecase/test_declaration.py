"""A declaration is valid as a whole, or refused in one line that names the file and the field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.usecase import (
    Resources,
    UseCase,
    get_usecase,
    load_object,
    load_usecase,
    load_usecases,
    parse_duration,
)

GOOD = yaml.safe_load((PROJECT_ROOT / "usecases" / "flight_delay.yaml").read_text())


def declared(**changes: Any) -> UseCase:
    return UseCase.model_validate({**copy.deepcopy(GOOD), **changes})


def test_the_built_in_declarations_load_under_their_names() -> None:
    loaded = load_usecases()
    assert loaded
    assert all(name == usecase.name for name, usecase in loaded.items())
    usecase = loaded["flight_delay"]
    assert usecase.prediction.lead == timedelta(hours=2)
    assert usecase.monitoring.cool_down == timedelta(days=14)
    assert usecase.sources.tables["planes"].static


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *where, last, value = path

    def change(declaration: dict[str, Any]) -> None:
        for step in where:
            declaration = declaration[step]
        declaration[last] = value

    return change


def _expect(*path: Any) -> Callable[[dict[str, Any]], None]:
    return _set("sources", "tables", "weather", "expects", *path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(_set("colour", "blue"), "colour", id="unknown key"),
        pytest.param(_set("monitoring", "cooldown", "14d"), "monitoring.cooldown", id="unknown key, deeper"),
        pytest.param(lambda d: d.pop("label"), "label", id="missing section"),
        pytest.param(lambda d: d["label"].pop("event"), "label.event", id="missing key"),
        pytest.param(_set("prediction", "lead", "two hours"), "prediction.lead", id="words for a duration"),
        pytest.param(_set("prediction", "lead", "-2h"), "prediction.lead", id="negative duration"),
        pytest.param(_set("prediction", "lead", "9999999999d"), "prediction.lead", id="endless duration"),
        pytest.param(_set("prediction", "lead", 2), "prediction.lead", id="duration without a unit"),
        pytest.param(_set("timezone", "America/Newark"), "timezone", id="unknown zone"),
        pytest.param(_set("timezone", "America"), "timezone", id="a folder of zones"),
        pytest.param(_set("timezone", "../../etc/passwd"), "timezone", id="no zone at all"),
        pytest.param(_set("timezone", "x" * 300), "timezone", id="a very long zone"),
        pytest.param(_set("entities", "airline", "airline_code"), "airline_code", id="entity not requested"),
        pytest.param(_set("prediction", "key", ["gate"]), "gate", id="key not requested"),
        pytest.param(_set("features", "categories", ["season"]), "season", id="category not requested"),
        pytest.param(_set("prediction", "time_field", "carrier"), "carrier", id="time of another type"),
        pytest.param(_set("request", "origin", "type", "text"), "request.origin.type", id="unknown type"),
        pytest.param(_set("gate", "accuracy", {}), "gate.accuracy", id="unknown rule"),
        pytest.param(_set("gate", "auc", "atleast", 1), "gate.auc.atleast", id="unknown bound"),
        pytest.param(_set("trainers", "mlp", "processes", 0), "mlp.processes", id="no process"),
        pytest.param(_set("trainer", "forest"), "trainer forest is missing", id="unknown trainer"),
        pytest.param(_set("trainers", "lightgbm", "processes", 2), "2 processes under", id="a launcher for one"),
        pytest.param(_set("trainers", "mlp", "min_processes", 1), "min_processes", id="elastic without its launcher"),
        pytest.param(_set("trainers", "ensemble", "members", ["forest"]), "member forest", id="unknown member"),
        pytest.param(_set("trainers", "ensemble", "members", ["ensemble"]), "member ensemble", id="nested members"),
        pytest.param(_set("trainers", "mlp", "search", "epochs", {"low": 5, "high": 2}), "below high", id="no range"),
        pytest.param(_set("name", "Flight Delay"), "name", id="name unfit for tables"),
        pytest.param(_set("replay", "start", "2013-13-01"), "replay.start", id="impossible day"),
        pytest.param(_expect("columns", "temp", "type", "text"), "temp.type", id="unknown column type"),
        pytest.param(_expect("columns", "temp", "nulls", 0), "temp.nulls", id="no share of nulls"),
        pytest.param(_expect("columns", "temp", "at_least", 200), "temp", id="range upside down"),
        pytest.param(
            _expect("columns", "temp", "pattern", "x"), "pattern is not a rule for type number", id="misfit rule"
        ),
        pytest.param(_expect("columns", "origin", "pattern", "[A-Z"), "not a regular expression", id="broken pattern"),
        pytest.param(_expect("columns", "origin", "values", [1]), "values must be of type string", id="misfit values"),
        pytest.param(_expect("columns", "origin", "nulls", 0.1), "key column origin may not be null", id="a null key"),
        pytest.param(_set("sources", "tables", "weather", "key", ["gate"]), "key column gate is missing", id="no key"),
        pytest.param(_expect("columns", "event_time", {"type": "string"}), "come with every row", id="what all have"),
        pytest.param(_expect("rows", {"at_least": 9, "at_most": 1}), "at_least 9 is above", id="volume upside down"),
        pytest.param(_expect("max_bad_share", 1), "max_bad_share", id="every row may be bad"),
        pytest.param(_expect("drift", {"columns": ["snow"]}), "snow under `drift`", id="drift of no column"),
        pytest.param(
            lambda it: it.update(release={"strategy": "ab", "duration": "1m", "sticky": "nobody"}),
            "release.sticky: nobody is missing",
            id="sticky key that no request has",
        ),
        pytest.param(_set("release", "strategy", "hope"), "release: Input tag 'hope'", id="unknown strategy"),
        pytest.param(_set("monitoring", "calibration", "gap", 1.5), "monitoring.calibration.gap", id="gap over 1"),
        pytest.param(
            _set("prediction", "decision", "cost_false_negative", 0), "cost_false_negative", id="a mistake for free"
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    declaration = copy.deepcopy(GOOD)
    change(declaration)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(declaration))
    with pytest.raises(ThroughlineError) as caught:
        load_usecase(path)
    message = str(caught.value)
    assert message.startswith("mine.yaml: ")
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"a: [1,\nb: 2", b"a:\n\tb: 1", b"\xff\xfe\x00", b"", b"- 1\n- 2", b"just text"])
def test_a_file_that_is_no_declaration_is_one_line_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ThroughlineError, match=r"^mine\.yaml") as caught:
        load_usecase(path)
    assert "\n" not in str(caught.value)


def test_broken_yaml_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\ngoal: y\nowners: [a\nzone: b\n")
    with pytest.raises(ThroughlineError, match=r"mine\.yaml is not YAML in line 4"):
        load_usecase(path)


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ThroughlineError, match=r"none\.yaml"):
        load_usecase(tmp_path / "none.yaml")
    with pytest.raises(ThroughlineError, match=r"'fligth_delay'.*flight_delay"):
        get_usecase("fligth_delay")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("90m", 5400), ("36h", 129600), ("14d", 1209600)])
def test_durations_are_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.text(max_size=8))
def test_a_text_that_is_not_a_duration_is_refused(text: str) -> None:
    try:
        parsed = parse_duration(text)
    except ValueError:
        return
    assert text[-1] in "smhd"
    assert text[:-1].isascii()
    assert parsed >= timedelta(0)


@pytest.mark.parametrize(
    "given_resources",
    [{"cpu": 0}, {"cpu": "two"}, {"cpu": float("inf")}, {"memory": "1 GB"}, {"memory": "0Gi"}, {"gpu": -1}],
)
def test_resources_that_no_machine_has_are_refused(given_resources: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="validation error"):
        Resources(**given_resources)


def test_the_decision_costs_least_at_every_score() -> None:
    decision = declared().prediction.decision
    assert decision.threshold == pytest.approx(0.25)
    for score in [0.0, 0.1, 0.2499, 0.25, 0.2501, 0.5, 1.0]:
        warn = (1 - score) * decision.cost_false_positive
        stay_silent = score * decision.cost_false_negative
        assert decision.decide(score) == ("late" if warn <= stay_silent else "on_time"), score


def test_a_nan_score_never_gets_the_positive_decision() -> None:
    assert declared().prediction.decision.decide(float("nan")) == "on_time"


@pytest.mark.parametrize(
    ("zone", "day", "start", "hours"),
    [
        ("America/New_York", date(2013, 1, 1), datetime(2013, 1, 1, 5), 24),
        ("America/New_York", date(2013, 3, 10), datetime(2013, 3, 10, 5), 23),
        ("America/New_York", date(2013, 11, 3), datetime(2013, 11, 3, 4), 25),
        ("Asia/Kolkata", date(2013, 7, 1), datetime(2013, 6, 30, 18, 30), 24),
        ("America/Sao_Paulo", date(2013, 10, 20), datetime(2013, 10, 20, 3), 23),  # has no midnight
        ("America/Havana", date(2013, 11, 3), datetime(2013, 11, 3, 4), 25),  # has two midnights
        ("Australia/Lord_Howe", date(2013, 4, 7), datetime(2013, 4, 6, 13), 24.5),
    ],
)
def test_a_local_day_begins_and_ends_at_midnight_of_its_zone(
    zone: str, day: date, start: datetime, hours: float
) -> None:
    usecase = declared(timezone=zone)
    begin, end = usecase.day_start(day), usecase.day_start(day + timedelta(days=1))
    assert begin == start.replace(tzinfo=UTC)
    assert end - begin == timedelta(hours=hours)
    tick = timedelta(microseconds=1)
    assert (usecase.local_day(begin), usecase.local_day(end - tick)) == (day, day)
    assert usecase.local_day(begin - tick) == day - timedelta(days=1)


def test_settings_move_the_first_day_and_the_start_of_the_clock(tmp_path: Path) -> None:
    usecase = declared()
    settings = Settings(home=tmp_path)
    assert usecase.first_day(settings) == date(2013, 1, 1)
    assert usecase.clock_start(settings) == datetime(2013, 4, 1, 4, tzinfo=UTC)
    settings = Settings(home=tmp_path, data_from=date(2013, 2, 1), data_until=date(2013, 3, 1))
    assert usecase.first_day(settings) == date(2013, 2, 1)
    assert usecase.clock_start(settings) == datetime(2013, 3, 1, 5, tzinfo=UTC)


def test_code_named_by_a_declaration_is_found() -> None:
    assert load_object("datetime:timedelta") is timedelta
    assert load_object("throughline.usecase").UseCase is UseCase


def test_the_code_that_declarations_name_exists() -> None:
    for usecase in load_usecases().values():
        assert callable(load_object(usecase.sources.module).read)
        assert callable(load_object(usecase.features.definitions).build)
        assert callable(load_object(usecase.features.request_features))
        assert {field.type for field in usecase.request.values()} <= {"string", "integer", "number", "timestamp"}
        assert all(field.example is not None for field in usecase.request.values())
