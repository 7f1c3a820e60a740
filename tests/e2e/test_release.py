"""Champions come and go on real services: what serves, the alias and the history agree, also after a crash."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_store_server import USECASE, model_bytes
from tests.support.promoted import at_once
from tests.support.replayed import without_tables
from throughline import services
from throughline.cli import main as cli
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.foundation.security.principal import GRAPH, Principal
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.mlflow.tracking import client_of, tracked_run
from throughline.records import EndpointRecord, GateDecision, ModelRecord, RuleVerdict
from throughline.records.store import load_record, save_record
from throughline.registry import decisions
from throughline.registry import versions as models
from throughline.registry.champions import line_of
from throughline.registry.history import append, event_of, events
from throughline.rollout import promotion
from throughline.rollout.local import LocalTarget
from throughline.rollout.promotion import restore, rollback
from throughline.usecase import UseCase, get_usecase

pytestmark = pytest.mark.e2e

ADA = Principal("ada")
SERVER = PROJECT_ROOT / "tests" / "support" / "fake_store_server.py"
PASSED = RuleVerdict(rule="auc", verdict="pass", value=0.75, bound="at least 0.72")


@pytest.fixture(scope="module")
def usecase() -> UseCase:
    return get_usecase(USECASE)


@pytest.fixture(scope="module")
def settings(home_that_serves: Settings) -> Settings:
    return home_that_serves


@pytest.fixture(scope="module")
def released(settings, usecase, tmp_path_factory) -> dict[int, ModelRecord]:
    """Versions 1 to 3, each released by the gate over the one before it."""
    made = {}
    for version in (1, 2, 3):
        made[version] = register(settings, tmp_path_factory.mktemp("file"), bias=version / 10)
        assert made[version].version == version
        over = ModelReference(USECASE, version - 1) if version > 1 else None
        release(settings, usecase, made[version], decide(settings, made[version], over), "released by the gate")
    return made


@pytest.fixture
def three(settings, usecase, released) -> dict[int, ModelRecord]:
    """The third is champion, before it were the second and the first."""
    wanted = tuple(model.reference for model in released.values())
    stands = line_of(events(settings, USECASE)).champions
    kept = len(stands) if stands == wanted[: len(stands)] else 0
    for model in list(released.values())[kept:]:
        promote(settings, usecase, model, ADA, "as it was")
    restore(settings, usecase)
    return released


def register(settings: Settings, folder: Path, bias: float) -> ModelRecord:
    file = folder / "output.onnx"
    file.write_bytes(model_bytes(bias))
    with tracked_run(client_of(settings), USECASE, {}, {}) as run_id:
        pass
    return models.register(
        settings, name=USECASE, run_id=run_id, file=file, dataset_fingerprint="f",
        trained_until=datetime(2013, 3, 17, tzinfo=UTC), trainer="t", parameters={},
    )  # fmt: skip


def decide(settings: Settings, model: ModelRecord, over: str | None, word: str = "release") -> GateDecision:
    decision = GateDecision(
        model=model.reference, sha256=model.sha256, decision=word, decided_at=datetime.now(UTC), rules=[PASSED],
        compared_with=over,
    )  # fmt: skip
    return decisions.recorded(settings, USECASE, decision)


def everywhere(settings: Settings) -> set[ModelReference]:
    """The champion by each place that names one."""
    (serving,) = httpx.get(f"{settings.url('model_http')}/v1/throughline/revisions").json()
    endpoint = load_record(settings, (USECASE, "deployment", "endpoint"), EndpointRecord)
    line = line_of(events(settings, USECASE))
    alias = models.alias(settings, USECASE)
    return {ModelReference(USECASE, serving["version"]), endpoint.model, line.champion, line.last, alias}


def version(text: str | None) -> ModelReference | None:
    return None if text is None else ModelReference.parse(text)


def since(settings: Settings, begun: datetime) -> list[tuple[str, str, ModelReference | None, ModelReference, str]]:
    found = [event for event in events(settings, USECASE, since=begun) if event.action in ("champion", "withdrawn")]
    return [(one.action, one.actor, version(one.old), version(one.new), one.reason) for one in found]


def release(
    settings: Settings, usecase: UseCase, model: ModelRecord, decision: GateDecision, reason: str
) -> EndpointRecord:
    """To the end of its rollout, whose candidate is found good."""
    started = promotion.release(settings, usecase, model, decision, reason)
    return at_once(settings, usecase, LocalTarget(settings), started)


def promote(settings: Settings, usecase: UseCase, model: ModelRecord, who: Principal, reason: str) -> EndpointRecord:
    started = promotion.promote(settings, usecase, model, who, reason)
    return at_once(settings, usecase, LocalTarget(settings), started)


V1, V2, V3 = (ModelReference(USECASE, version) for version in (1, 2, 3))


def test_each_release_becomes_champion_everywhere(settings, released):
    found = [event for event in events(settings, USECASE, action="champion") if event.actor == GRAPH]
    assert [(version(event.old), version(event.new)) for event in found] == [(None, V1), (V1, V2), (V2, V3)]


def test_releasing_the_champion_again_changes_and_records_nothing(settings, usecase, three):
    begun = datetime.now(UTC)
    release(settings, usecase, three[3], decisions.newest(settings, USECASE, V3), "again")
    assert (everywhere(settings), since(settings, begun)) == ({V3}, [])


def test_a_second_rollback_returns_to_the_champion_before_and_a_third_fails(settings, usecase, three):
    begun = datetime.now(UTC)
    assert rollback(settings, usecase, ADA, "it warns too often").model == V2
    assert everywhere(settings) == {V2}
    assert rollback(settings, usecase, ADA, "still").model == V1
    assert everywhere(settings) == {V1}
    assert since(settings, begun) == [
        ("withdrawn", "ada", V3, V2, "it warns too often"),
        ("champion", "ada", V3, V2, "it warns too often"),
        ("withdrawn", "ada", V2, V1, "still"),
        ("champion", "ada", V2, V1, "still"),
    ]
    with pytest.raises(ThroughlineError, match=r"no champion before flight_delay/1"):
        rollback(settings, usecase, ADA, "further")
    assert everywhere(settings) == {V1}


def test_a_rollback_needs_only_the_folder_that_served_before(settings, usecase, three):
    """Not the registry's: it may be the very thing that broke."""
    hidden = Path(three[2].uri).with_name("away")
    Path(three[2].uri).rename(hidden)
    try:
        assert rollback(settings, usecase, ADA, "").model == V2
    finally:
        hidden.rename(three[2].uri)


def test_a_changed_folder_is_replaced_by_the_registered_one(settings, usecase, three):
    file = settings.serving_home / USECASE / "2" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(model_bytes(bias=9.0))
    assert rollback(settings, usecase, ADA, "").model == V2
    assert file.read_bytes() == good
    assert everywhere(settings) == {V2}


def test_a_rollback_without_an_unchanged_folder_changes_nothing(settings, usecase, three):
    begun = datetime.now(UTC)
    files = [settings.serving_home / USECASE / "2" / "model.onnx", Path(three[2].uri) / "model.onnx"]
    good = files[0].read_bytes()
    for file in files:
        file.write_bytes(model_bytes(bias=9.0))
    try:
        with pytest.raises(ThroughlineError, match="flight_delay/2 is refused"):
            rollback(settings, usecase, ADA, "")
    finally:
        for file in files:
            file.write_bytes(good)
    assert (everywhere(settings), since(settings, begun)) == ({V3}, [])


def test_a_version_without_a_release_is_not_promoted(settings, usecase, three, tmp_path):
    begun = datetime.now(UTC)
    new = register(settings, tmp_path, bias=0.7)
    with pytest.raises(ThroughlineError, match="the gate has not decided"):
        promote(settings, usecase, new, ADA, "I like it")
    decide(settings, new, V3, "wait")
    with pytest.raises(ThroughlineError, match="the gate's decision is wait"):
        promote(settings, usecase, new, ADA, "I like it")
    decide(settings, new.model_copy(update={"sha256": "b" * 64}), V3)
    with pytest.raises(ThroughlineError, match="is not promoted"):
        promote(settings, usecase, new, ADA, "I like it")
    with pytest.raises(ThroughlineError, match="give a --reason"):
        promote(settings, usecase, three[2], ADA, " ")
    assert (everywhere(settings), since(settings, begun)) == ({V3}, [])


def test_the_second_of_two_concurrent_candidates_is_not_deployed(settings, usecase, three, tmp_path):
    """Both were compared with the second version and released; meanwhile the third is champion."""
    late = register(settings, tmp_path, bias=0.8)
    decision = decide(settings, late, V2)
    with pytest.raises(ThroughlineError, match=rf"compared with {V2}, but {V3} is champion now"):
        release(settings, usecase, late, decision, "released by the gate")
    assert everywhere(settings) == {V3}


def test_a_withdrawn_version_is_served_again_only_by_a_person(settings, usecase, three):
    rollback(settings, usecase, ADA, "")
    with pytest.raises(ThroughlineError, match=f"throughline promote {V3}"):
        release(settings, usecase, three[3], decisions.newest(settings, USECASE, V3), "released by the gate")
    assert everywhere(settings) == {V2}
    promote(settings, usecase, three[3], ADA, "it was not the model")
    assert everywhere(settings) == {V3}


def test_an_alias_moved_by_hand_is_put_back_by_the_history(settings, usecase, three):
    models.set_alias(settings, V1)
    assert models.champion(settings, USECASE) == three[3]
    assert restore(settings, usecase).champion == V3
    assert everywhere(settings) == {V3}


def test_a_revision_or_record_that_names_another_version_follows_the_history_again(settings, usecase, three):
    key = (USECASE, "deployment", "endpoint")
    begun, right = datetime.now(UTC), load_record(settings, key, EndpointRecord)
    save_record(settings, key, right.model_copy(update={"model": V1}))
    assert restore(settings, usecase).champion == V3
    assert everywhere(settings) == {V3}
    promotion.serve(LocalTarget(settings), usecase, three[2])
    assert V2 in everywhere(settings)
    assert restore(settings, usecase).champion == V3
    assert (everywhere(settings), since(settings, begun)) == ({V3}, [])


def test_what_is_deployed_and_not_served_is_loaded_again_or_deployed_again(settings, usecase, three):
    unload = f"{settings.url('model_http')}/v2/repository/models/{USECASE}/unload"
    file = settings.serving_home / USECASE / "3" / "model.onnx"
    assert services.not_served(settings, services.served_models(settings)) == {}

    httpx.post(unload).raise_for_status()
    trouble = services.not_served(settings, services.served_models(settings), services.refusals(settings))[USECASE]
    assert f"({V3}, stable) of {USECASE} is deployed, not served: unloaded by a request" in trouble.what
    assert trouble.since is not None
    assert services.load_deployed(settings, services.served_models(settings)) == {}
    assert everywhere(settings) == {V3}

    httpx.post(unload).raise_for_status()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    left = services.load_deployed(settings, services.served_models(settings))[USECASE]
    assert ("changed: model.onnx" in left.what, left.command) == (True, "throughline run")
    assert "changed: model.onnx" in services.refusals(settings)[USECASE]["why"]
    restore(settings, usecase, again=True)
    assert everywhere(settings) == {V3}
    assert services.not_served(settings, services.served_models(settings)) == {}
    assert services.refusals(settings) == {}


def test_a_rollback_of_which_only_the_withdrawal_is_recorded_is_left_to_its_repetition(settings, usecase, three):
    append(settings, USECASE, event_of("withdrawn", V3, "ada", old=V3, new=V2, reason="bad"))
    assert restore(settings, usecase).champion == V2
    assert models.alias(settings, USECASE) == V3
    assert rollback(settings, usecase, ADA, "bad").model == V2
    assert everywhere(settings) == {V2}


# A command that is killed between any two of its steps


class Killed(BaseException):
    """As by a signal: no handler catches it."""


def breaking(monkeypatch: pytest.MonkeyPatch, step: int, when: str) -> None:
    """Raise `Killed` before or after the numbered step of those that change something."""
    counted = iter(range(1, 100))

    def wrapped(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any, **named: Any) -> Any:
            number = next(counted)
            if number == step and when == "before":
                raise Killed
            result = act(*arguments, **named)
            if number == step:
                raise Killed
            return result

        return acting

    monkeypatch.setattr(promotion, "append", wrapped(append))
    monkeypatch.setattr(promotion, "serve", wrapped(promotion.serve))
    monkeypatch.setattr(promotion, "save_record", wrapped(save_record))
    monkeypatch.setattr(models, "set_alias", wrapped(models.set_alias))


def each(steps: int, *always: tuple[int, str], first: int = 0, last: int = 0) -> list[Any]:
    """Before and after each step; what is not `always` run belongs to the drills."""
    deaths = [(step, when) for step in range(1, steps + 1) for when in ("before", "after")]
    chosen = deaths[first : len(deaths) - last]
    return [pytest.param(*one, marks=() if one in always else pytest.mark.drill) for one in chosen]


# Of a rollback: withdrawn, serve, champion, record, alias. After the last it is done.
@pytest.mark.parametrize(("step", "when"), each(5, (2, "before"), (5, "before"), last=1))
def test_a_killed_rollback_is_completed_by_repeating_it(settings, usecase, three, monkeypatch, step, when):
    begun = datetime.now(UTC)
    with monkeypatch.context() as patch:
        breaking(patch, step, when)
        with pytest.raises(Killed):
            rollback(settings, usecase, ADA, "bad")
    assert rollback(settings, usecase, ADA, "bad").model == V2
    assert everywhere(settings) == {V2}
    assert since(settings, begun) == [("withdrawn", "ada", V3, V2, "bad"), ("champion", "ada", V3, V2, "bad")]


# Of a promotion: serve, champion, record, alias.
@pytest.mark.parametrize(("step", "when"), each(4, (4, "before")))
def test_a_killed_promotion_is_completed_by_repeating_it(settings, usecase, three, monkeypatch, step, when):
    begun = datetime.now(UTC)
    with monkeypatch.context() as patch:
        breaking(patch, step, when)
        with pytest.raises(Killed):
            promote(settings, usecase, three[2], ADA, "better")
    promote(settings, usecase, three[2], ADA, "better")
    assert everywhere(settings) == {V2}
    assert since(settings, begun) == [("champion", "ada", V3, V2, "better; rollout canary: good")]


@pytest.mark.parametrize(("step", "when"), each(4, (1, "after"), first=1, last=1))
def test_a_killed_promotion_is_undone_by_a_rollback(settings, usecase, three, monkeypatch, step, when):
    with monkeypatch.context() as patch:
        breaking(patch, step, when)
        with pytest.raises(Killed):
            promote(settings, usecase, three[2], ADA, "better")
    assert rollback(settings, usecase, ADA, "no, worse").model == V3
    assert everywhere(settings) == {V3}


# The commands


def run(monkeypatch: pytest.MonkeyPatch, settings: Settings, *arguments: str) -> int:
    monkeypatch.setenv("THROUGHLINE_HOME", str(settings.home))
    monkeypatch.setenv("THROUGHLINE_PORT_BASE", str(settings.port_base))
    monkeypatch.setattr(sys, "argv", ["throughline", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_commands_show_what_serves_and_the_history_its_actor(settings, three, monkeypatch, capsys):
    without_tables(monkeypatch)
    me, begun = getpass.getuser(), datetime.now(UTC)
    assert run(monkeypatch, settings, "rollback", USECASE, "--reason", "late at night", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(V2)
    assert run(monkeypatch, settings, "promote", str(V3), "--reason", "it was the data", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(V3)
    *changes, (action, actor, old, new, reason) = since(settings, begun)
    assert changes == [("withdrawn", me, V3, V2, "late at night"), ("champion", me, V3, V2, "late at night")]
    assert (action, actor, old, new) == ("champion", me, V2, V3)
    assert reason.startswith("it was the data; rollout canary: within tolerance: errors, latency, scores")
    assert run(monkeypatch, settings, "rollout", "show", USECASE, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["candidate"], shown["share"]) == ("promoted", str(V3), 1.0)
    assert run(monkeypatch, settings, "rollout", "show", USECASE) == 0
    assert "within tolerance" in capsys.readouterr().out
    assert run(monkeypatch, settings, "history", str(V3), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert {event["action"] for event in shown} >= {"registered", "decided", "withdrawn", "champion"}
    assert shown[-1]["reason"].startswith("it was the data")
    assert run(monkeypatch, settings, "history", str(V3)) == 0
    assert "it was the data" in capsys.readouterr().out
    assert run(monkeypatch, settings, "promote", f"{USECASE}/99", "--reason", "x") == 1
    assert "flight_delay/99 is not registered" in capsys.readouterr().err


def test_approving_what_is_not_the_candidate_or_does_not_wait_is_refused(settings, three, monkeypatch, capsys):
    assert run(monkeypatch, settings, "approve", str(V3), "--reason", "x") == 1
    assert "is not the candidate" in capsys.readouterr().err
    save_record(settings, (USECASE, "training", "model"), three[3])
    assert run(monkeypatch, settings, "approve", str(V3), "--reason", "x") == 1
    assert "nothing to approve" in capsys.readouterr().err
    assert events(settings, USECASE, action="approved") == []


def test_an_approval_is_recorded_though_dagster_does_not_run(settings, usecase, three, monkeypatch, capsys, tmp_path):
    """And the approver is not who registered the version."""
    me = getpass.getuser()
    for lenient, problem in ((False, f"{me} submitted it"), (True, None)):
        manual = usecase.release.model_copy(update={"policy": "manual", "submitter_may_approve": lenient})
        changed = usecase.model_copy(update={"release": manual, "approvers": [me]})
        monkeypatch.setattr("throughline.cli.govern.get_usecase", lambda name, changed=changed: changed)
        new = register(settings, tmp_path, bias=0.9)
        decide(settings, new, V3, "wait")
        save_record(settings, (USECASE, "training", "model"), new)
        assert run(monkeypatch, settings, "approve", str(new.reference), "--reason", "numbers seen", "--json") == bool(
            problem
        )
        out, err = capsys.readouterr()
        if problem:
            assert problem in err
            assert events(settings, USECASE, target=new.reference, action="approved") == []
    result = json.loads(out)
    assert (result["approved_by"], result["sha256"], result["run"]) == (me, new.sha256, None)
    assert "Repeat the command" in result["note"]
    (event,) = events(settings, USECASE, target=new.reference, action="approved")
    assert (event.actor, event.new, event.reason) == (me, new.sha256, "numbers seen")
    assert everywhere(settings) == {V3}
