"""Only what the gate released is deployed: the deployment asset on a real ephemeral instance."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dagster import AssetKey, AssetSpec, Definitions, ExecuteInProcessResult, materialize

from assets.deployment import deployment_assets
from assets.evaluation import evaluation_assets
from assets.resources import RecordIOManager
from tests.support.judged import a_model, an_evaluation
from throughline.foundation.security.principal import GRAPH, current_principal
from throughline.foundation.settings import Settings
from throughline.records import EvaluationRecord, GateDecision, Metrics, ModelRecord, OnlineStoreRecord, RuleVerdict
from throughline.records.store import find_record, load_record, save_record
from throughline.registry import decisions
from throughline.registry.history import append, event_of, events
from throughline.usecase import Bound, UseCase, get_usecase

NOW = datetime(2013, 4, 1, 4, tzinfo=UTC)
GOOD = Metrics(rows=9000, log_loss=0.44, auc=0.76, brier=0.14, ece=0.02)
CONSTANT = Metrics(rows=9000, log_loss=0.52, auc=0.5, brier=0.17, ece=0.0)


@pytest.fixture
def usecase() -> UseCase:
    return get_usecase("flight_delay")


def model(version: int = 1) -> ModelRecord:
    return a_model(version, "flight_delay", sha256=f"{version:064d}", uri="/nowhere", trained_until=NOW)


def evaluation(of: ModelRecord, candidate: Metrics = GOOD) -> EvaluationRecord:
    times = {"evaluated_at": datetime.now(UTC), "holdout_from": NOW, "holdout_until": NOW}
    return an_evaluation(of, NOW, **times, candidate=candidate, constant=CONSTANT)


def launch(settings: Settings, usecase: UseCase, *selected: tuple[str, str]) -> ExecuteInProcessResult:
    """Materialise only these assets, as from the UI."""
    both = Definitions.merge(evaluation_assets(usecase), deployment_assets(usecase))
    upstream = [("training", "dataset"), ("training", "model"), ("features", "online_store")]
    return materialize(
        [*both.assets, *(AssetSpec([usecase.name, *key]) for key in upstream)],
        selection=[AssetKey([usecase.name, *key]) for key in selected],
        resources={"settings": settings, "io_manager": RecordIOManager(settings)},
        raise_on_error=False,
    )


def keep(settings: Settings, usecase: UseCase, **records: Any) -> None:
    places = {
        "model": ("training", "model"),
        "evaluation": ("evaluation", "evaluation"),
        "gate": ("evaluation", "gate"),
        "online_store": ("features", "online_store"),
    }
    for name, record in records.items():
        save_record(settings, (usecase.name, *places[name]), record)


def error_of(result: ExecuteInProcessResult) -> str:
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    error = failure.step_failure_data.error
    while error.cause:
        error = error.cause
    return error.message


PASSED = [RuleVerdict(rule="auc", verdict="pass", value=0.76, bound="at least 0.72")]
ONLINE = OnlineStoreRecord(usecase="flight_delay", until=NOW, sources=[])


def test_a_rejected_candidate_leaves_the_endpoint_as_it_is(settings: Settings, usecase: UseCase) -> None:
    too_good = GOOD.model_copy(update={"auc": 0.85})
    keep(settings, usecase, model=model(), evaluation=evaluation(model(), too_good), online_store=ONLINE)
    result = launch(settings, usecase, ("evaluation", "gate"), ("deployment", "endpoint"))
    assert result.success
    gate = load_record(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    assert gate.decision == "reject"
    assert "auc fail (0.8500" in gate.reasons
    assert not result.asset_materializations_for_node("flight_delay__deployment__endpoint")
    assert not settings.serving_home.exists()


def test_deployment_without_a_decision_fails_closed(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=model(), online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "No record of flight_delay/evaluation/gate" in error_of(result)


def test_a_decision_about_another_version_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    decision = GateDecision(
        model="flight_delay/1", sha256=model(1).sha256, decision="release", decided_at=NOW, rules=PASSED
    )
    keep(settings, usecase, model=model(2), gate=decision, online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "flight_delay/1" in error_of(result)
    assert "flight_delay/2" in error_of(result)
    assert not settings.serving_home.exists()


def test_a_decision_about_other_bytes_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    decision = GateDecision(model="flight_delay/1", sha256="e" * 64, decision="release", decided_at=NOW, rules=PASSED)
    keep(settings, usecase, model=model(1), gate=decision, online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "flight_delay/1" in error_of(result)
    assert not settings.serving_home.exists()


def test_an_evaluation_of_another_version_is_no_reason_to_release(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=model(2), evaluation=evaluation(model(1)), online_store=ONLINE)
    result = launch(settings, usecase, ("evaluation", "gate"))
    assert result.success
    gate = load_record(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    assert gate.decision == "reject"


def test_an_evaluation_that_crashes_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=model(), online_store=ONLINE)  # the dataset it should read is missing
    rooms = [("evaluation", "evaluation"), ("evaluation", "gate"), ("deployment", "endpoint")]
    result = launch(settings, usecase, *rooms)
    assert not result.success
    assert find_record(settings, (usecase.name, "evaluation", "gate"), GateDecision) is None
    assert events(settings, usecase.name) == []
    assert not settings.serving_home.exists()


# What the gate decides stands in the history, and nothing is deployed on a decision that does not


def lenient(usecase: UseCase, **release: Any) -> UseCase:
    """The use case with one rule, which `GOOD` satisfies, and with the user of the tests as its approver."""
    changed = usecase.release.model_copy(update=release)
    rules = {"auc": Bound(at_least=0.7)}
    return usecase.model_copy(update={"gate": rules, "release": changed, "approvers": [getpass.getuser()]})


def candidate(version: int = 1) -> ModelRecord:
    """Trained until before the rows that `evaluation` was made on."""
    return model(version).model_copy(update={"trained_until": NOW - timedelta(days=1)})


def judge(settings: Settings, usecase: UseCase) -> GateDecision:
    assert launch(settings, usecase, ("evaluation", "gate")).success
    return load_record(settings, (usecase.name, "evaluation", "gate"), GateDecision)


def test_a_decision_stands_in_the_history_once_as_the_graph_hands_it_on(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=candidate(), evaluation=evaluation(candidate()))
    first = judge(settings, lenient(usecase))
    assert first.decision == "release"
    assert judge(settings, lenient(usecase)) == first
    (event,) = events(settings, usecase.name)
    assert (event.action, event.target, event.actor) == ("decided", "flight_delay/1", GRAPH)
    assert GateDecision.model_validate_json(event.new) == first
    keep(settings, usecase, evaluation=evaluation(candidate(), GOOD.model_copy(update={"auc": 0.5})))
    assert judge(settings, lenient(usecase)).decision == "reject"
    assert [one.decision for one in decisions.decisions(settings, usecase.name, "flight_delay/1")] == [
        "release",
        "reject",
    ]


def test_a_decision_that_is_not_in_the_history_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    forged = GateDecision(
        model="flight_delay/1", sha256=model(1).sha256, decision="release", decided_at=NOW, rules=PASSED
    )
    keep(settings, usecase, model=model(1), gate=forged, online_store=ONLINE)
    result = launch(settings, usecase, ("deployment", "endpoint"))
    assert not result.success
    assert "flight_delay/1 is not deployed: the history has no decision about it" in error_of(result)
    assert not settings.serving_home.exists()


def test_a_rejection_turned_into_a_release_by_hand_releases_nothing(settings: Settings, usecase: UseCase) -> None:
    poor = evaluation(candidate(), GOOD.model_copy(update={"auc": 0.5}))
    keep(settings, usecase, model=candidate(), evaluation=poor, online_store=ONLINE)
    rejected = judge(settings, lenient(usecase))
    keep(settings, usecase, gate=rejected.model_copy(update={"decision": "release", "rules": PASSED}))
    result = launch(settings, lenient(usecase), ("deployment", "endpoint"))
    assert not result.success
    assert "the history has another decision about it: reject" in error_of(result)


def test_a_release_before_a_later_rejection_is_not_deployed(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=candidate(), evaluation=evaluation(candidate()), online_store=ONLINE)
    released = judge(settings, lenient(usecase))
    keep(settings, usecase, evaluation=evaluation(candidate(), GOOD.model_copy(update={"auc": 0.5})))
    judge(settings, lenient(usecase))
    keep(settings, usecase, gate=released)
    result = launch(settings, lenient(usecase), ("deployment", "endpoint"))
    assert not result.success
    assert "the history has another decision about it: reject" in error_of(result)


# The manual policy


def test_under_the_manual_policy_a_good_candidate_waits_and_serves_nothing(
    settings: Settings, usecase: UseCase
) -> None:
    keep(settings, usecase, model=candidate(), evaluation=evaluation(candidate()), online_store=ONLINE)
    manual = lenient(usecase, policy="manual", submitter_may_approve=True)
    result = launch(settings, manual, ("evaluation", "gate"), ("deployment", "endpoint"))
    assert result.success
    assert not result.asset_materializations_for_node("flight_delay__deployment__endpoint")
    assert not settings.serving_home.exists()
    waiting = load_record(settings, (usecase.name, "evaluation", "gate"), GateDecision)
    assert waiting.decision == "wait"
    assert "throughline approve flight_delay/1 --reason" in waiting.failures


def test_an_approval_releases_only_when_an_approver_gives_it(settings: Settings, usecase: UseCase) -> None:
    keep(settings, usecase, model=candidate(), evaluation=evaluation(candidate()))
    manual = lenient(usecase, policy="manual", submitter_may_approve=True)
    assert judge(settings, manual).decision == "wait"
    append(settings, usecase.name, event_of("approved", "flight_delay/1", "eve", new=candidate().sha256, reason="me"))
    decision = judge(settings, manual)
    assert decision.decision == "wait"
    assert "eve is not among the approvers" in decision.failures
    decisions.approve(settings, manual, candidate(), current_principal(settings), "numbers seen")
    decision = judge(settings, manual)
    assert decision.decision == "release"
    assert f"by {getpass.getuser()}: numbers seen" in decision.reasons


def test_a_release_without_approval_is_not_deployed_once_the_policy_is_manual(
    settings: Settings, usecase: UseCase
) -> None:
    keep(settings, usecase, model=candidate(), evaluation=evaluation(candidate()), online_store=ONLINE)
    assert judge(settings, lenient(usecase)).decision == "release"
    result = launch(settings, lenient(usecase, policy="manual"), ("deployment", "endpoint"))
    assert not result.success
    assert "the decision has no approval" in error_of(result)


# Several candidates


def made_champion(settings: Settings, *versions: int) -> None:
    for version in versions:
        reference = f"flight_delay/{version}"
        append(settings, "flight_delay", event_of("champion", "flight_delay", GRAPH, new=reference))


def test_a_candidate_evaluated_before_another_became_champion_is_rejected(settings: Settings, usecase: UseCase) -> None:
    """Both were evaluated while there was no champion; then the first became one."""
    made_champion(settings, 1)
    keep(settings, usecase, model=candidate(2), evaluation=evaluation(candidate(2)))
    decision = judge(settings, lenient(usecase))
    assert decision.decision == "reject"
    assert "compared with no champion, the champion now is flight_delay/1" in decision.failures


def test_the_champion_itself_may_be_judged_again(settings: Settings, usecase: UseCase) -> None:
    made_champion(settings, 1)
    keep(settings, usecase, model=candidate(1), evaluation=evaluation(candidate(1)))
    assert judge(settings, lenient(usecase)).decision == "release"


def test_the_graph_does_not_release_a_replaced_champion(settings: Settings, usecase: UseCase) -> None:
    made_champion(settings, 1, 2)
    append(settings, usecase.name, event_of("withdrawn", "flight_delay/2", "ada", new="flight_delay/1"))
    made_champion(settings, 1)
    again = evaluation(candidate(2)).model_copy(update={"champion": GOOD, "champion_model": "flight_delay/1"})
    keep(settings, usecase, model=candidate(2), evaluation=again)
    decision = judge(settings, lenient(usecase))
    assert decision.decision == "reject"
    assert "throughline promote flight_delay/2" in decision.failures
