"""The history is append-only: no event is there twice, lost or changed, and people can read it."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from throughline.cli import main as cli
from throughline.cli.govern import local_time
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH
from throughline.foundation.settings import Settings, load_settings
from throughline.lakehouse.table import current_version
from throughline.records import GateDecision, HistoryEvent
from throughline.registry.history import LAYER, TABLE, append, change, concerning, event_of, events
from throughline.usecase import get_usecase

NAME = "flight_delay"
NOW = datetime(2024, 7, 1, 12, tzinfo=UTC)


def event_at(action: str, target: str, minutes: int = 0, **values) -> HistoryEvent:
    event = event_of(action, target, values.pop("actor", "ada"), **values)
    return event.model_copy(update={"at": NOW + timedelta(minutes=minutes)})


def test_events_are_read_as_they_were_appended_oldest_first(settings: Settings):
    late = event_at("champion", "shop", 5, old="shop/1", new="shop/2", reason='für "alle", gerne')
    early = event_at("registered", "shop/2", 1, new="a" * 64, actor=GRAPH)
    append(settings, "shop", late)
    append(settings, "shop", early)
    assert events(settings, "shop") == [early, late]
    assert events(settings, "other") == []


def test_a_repeated_step_is_one_event_and_the_first_one_stays(settings: Settings):
    first = event_of("decided", "shop/2", GRAPH, new="1", reason="first", once=["a", 1])
    append(settings, "shop", first)
    append(settings, "shop", event_of("decided", "shop/2", GRAPH, new="2", reason="second", once=["a", 1]))
    assert events(settings, "shop") == [first]
    append(settings, "shop", event_of("decided", "shop/3", GRAPH, once=["a", 1]))
    append(settings, "shop", event_of("approved", "shop/2", GRAPH, once=["a", 1]))
    assert len(events(settings, "shop")) == 3


def test_without_a_key_the_same_content_at_another_time_is_another_event(settings: Settings):
    for _ in range(2):
        append(settings, "shop", event_of("note", "shop/2", "ada", reason="seen"))
    assert len(events(settings, "shop")) == 2


def test_concurrent_appends_lose_nothing(settings: Settings):
    append(settings, "shop", event_of("note", "shop", "ada", reason="first"))
    notes = [event_of("note", f"shop/{n}", "ada", reason=str(n)) for n in range(8)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda note: append(settings, "shop", note), notes))
    assert {event.id for event in events(settings, "shop", since=notes[0].at)} == {note.id for note in notes}


def test_appending_an_event_again_does_not_change_the_table(settings: Settings):
    note = event_of("note", "shop", "ada", reason="once")
    place = settings.table_path("shop", LAYER, TABLE)
    append(settings, "shop", note)
    before = current_version(place)
    append(settings, "shop", note)
    assert current_version(place) == before


def test_a_name_gives_its_versions_and_a_version_only_itself(settings: Settings):
    for target in ("shop", "shop/1", "shop/12", "shopping/1"):
        append(settings, "shop", event_of("note", target, "ada", reason=target))
    assert [event.target for event in events(settings, "shop", target="shop")] == ["shop", "shop/1", "shop/12"]
    assert [event.target for event in events(settings, "shop", target="shop/1")] == ["shop/1"]


# What people read


def test_the_history_of_a_version_has_when_it_became_champion_and_ceased_to_be():
    up = event_at("champion", "shop", 1, old="shop/1", new="shop/2")
    down = event_at("withdrawn", "shop/2", 2, old="shop/2", new="shop/1")
    back = event_at("champion", "shop", 3, old="shop/2", new="shop/1")
    other = event_at("note", "shop/12", 4, reason="not this one")
    assert concerning([up, down, back, other], ModelReference("shop", 2)) == [up, down, back]
    assert concerning([up, other], ModelReference("shop", 12)) == [other]


def test_an_event_is_shown_as_what_changed():
    decision = GateDecision(model="shop/2", sha256="a", decision="reject", decided_at=NOW, rules=[])
    assert change(event_at("decided", "shop/2", new=decision.model_dump_json())) == "reject"
    assert change(event_at("decided", "shop/2", new="{")) == "cannot be read"
    assert change(event_at("champion", "shop", new="shop/1")) == "none → shop/1"
    assert change(event_at("approved", "shop/2", new="a" * 64)) == "a" * 12


def test_times_are_shown_in_the_zone_of_the_use_case():
    usecase = get_usecase(NAME)
    assert local_time(datetime(2013, 3, 10, 6, 59, tzinfo=UTC), usecase) == "2013-03-10 01:59:00 EST"
    assert local_time(datetime(2013, 3, 10, 7, 0, tzinfo=UTC), usecase) == "2013-03-10 03:00:00 EDT"


@pytest.fixture
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A home whose services are all down."""
    monkeypatch.setenv("THROUGHLINE_HOME", str(settings.home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", "64970")
    return load_settings()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["throughline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_a_note_is_recorded_with_its_author(home, monkeypatch, capsys):
    import getpass

    assert run(monkeypatch, "note", NAME, "[bold]closed on Monday", "--json") == 0
    note = json.loads(capsys.readouterr().out)
    assert (note["actor"], note["target"], note["action"]) == (getpass.getuser(), NAME, "note")
    assert run(monkeypatch, "history", NAME, "--json") == 0
    (event,) = json.loads(capsys.readouterr().out)
    assert event == {"usecase": NAME, **note}
    assert datetime.fromisoformat(event["at"]).utcoffset() == timedelta(0)
    assert run(monkeypatch, "history") == 0
    assert "[bold]closed" in "".join(capsys.readouterr().out.split())


def test_an_empty_history_is_reported(home, monkeypatch, capsys):
    assert run(monkeypatch, "history", f"{NAME}/3") == 0
    assert "no event is recorded yet" in capsys.readouterr().out
    assert run(monkeypatch, "history", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("approve", f"{NAME}/1"),
        ("promote", f"{NAME}/1"),
        ("approve", NAME, "--reason", "seen"),
        ("promote", f"{NAME}/one", "--reason", "seen"),
        ("promote", f"{NAME}/0", "--reason", "seen"),
        ("history", f"{NAME}/"),
        ("note", NAME),
        ("note", NAME, " "),
        ("rollback",),
    ],
)
def test_a_wrong_call_is_exit_code_2_and_changes_nothing(home, monkeypatch, arguments):
    assert run(monkeypatch, *arguments) == 2
    assert not home.lakehouse.exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("approve", f"{NAME}/1", "--reason", "seen"), "MLflow does not answer"),
        (("promote", f"{NAME}/1", "--reason", "seen"), "MLflow does not answer"),
        (("rollback", NAME), "MLflow does not answer"),
        (("note", f"{NAME}/1", "seen"), "MLflow does not answer"),
        (("rollback", "nobody"), "Unknown use case 'nobody'"),
        (("history", "nobody/1"), "Unknown use case 'nobody'"),
    ],
)
def test_what_cannot_be_done_now_is_one_line_and_exit_code_1(home, monkeypatch, capsys, arguments, problem):
    assert run(monkeypatch, *arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert problem in line


def test_with_an_unknown_token_nothing_is_written(home, monkeypatch, capsys):
    monkeypatch.setenv("THROUGHLINE_BIND", "0.0.0.0")
    monkeypatch.setenv("THROUGHLINE_TOKEN", "unknown")
    assert run(monkeypatch, "note", NAME, "seen") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "users.toml has the token of this process" in line
    assert not home.lakehouse.exists()
