"""Under the manual policy only an approval that counts releases a version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.shop import declare
from throughline.evaluation.gate import decide
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.principal import GRAPH, Principal
from throughline.foundation.settings import Settings
from throughline.records import EvaluationRecord, GateDecision, Metrics, ModelRecord
from throughline.registry import decisions
from throughline.registry.approval import Approval, approval_verdict, objection, submitters
from throughline.registry.history import append, event_of, events
from throughline.usecase import Bound, UseCase

NOW = datetime(2024, 11, 1, 12, tzinfo=UTC)
SHA = "a" * 64
MODEL = ModelRecord(
    name="shop", version=3, run_id="r", sha256=SHA, uri="", dataset_fingerprint="f",
    trained_until=NOW - timedelta(days=20), trainer="t", parameters={},
)  # fmt: skip
ADA = Principal("ada", frozenset({"returns"}))
BOB = Principal("bob")
FEED = {"files": "/nowhere/*.parquet", "event_time": "ordered_at", "available_at": "known_at"}


@pytest.fixture(scope="module")
def usecase(tmp_path_factory) -> UseCase:
    return declare(
        tmp_path_factory.mktemp("usecases"),
        FEED,
        approvers=["returns", "bob"],
        release={"strategy": "direct", "policy": "manual"},
    )


def evaluated(auc: float = 0.7) -> EvaluationRecord:
    metrics = Metrics(rows=9, log_loss=0.4, auc=auc, brier=0.1, ece=0.01)
    return EvaluationRecord(
        model=MODEL.reference, sha256=SHA, dataset_fingerprint="f", evaluated_at=NOW, holdout_from=NOW,
        holdout_until=NOW, candidate=metrics, constant=metrics, champion=None, champion_model=None,
    )  # fmt: skip


def decided(usecase: UseCase, *approvals: Approval, submitted_by=frozenset({GRAPH}), auc: float = 0.7) -> GateDecision:
    verdicts = [approval_verdict(usecase, MODEL, submitted_by, approvals)]
    return decide(evaluated(auc), MODEL, {"auc": Bound(at_least=0.6)}, NOW, None, verdicts)


def approval(by: Principal = ADA, sha256: str | None = SHA, reason: str = "numbers seen") -> Approval:
    return Approval(by, sha256, reason)


@pytest.mark.parametrize("who", [ADA, BOB], ids=["by group", "by name"])
def test_an_approver_releases_with_a_reason(usecase, who):
    decision = decided(usecase, approval(who))
    assert decision.decision == "release"
    assert f"approval pass (by {who.name}: numbers seen)" in decision.reasons


def test_without_an_approval_it_waits_and_the_decision_names_the_command(usecase):
    decision = decided(usecase)
    assert decision.decision == "wait"
    assert decision.failures.startswith(
        "approval cannot say (waits for one of returns, bob: throughline approve shop/3"
    )


@pytest.mark.parametrize(
    ("given", "submitted_by", "why"),
    [
        (
            approval(Principal("eve", frozenset({"staff"}))),
            {GRAPH},
            "eve is not among the approvers of shop (returns",
        ),
        (approval(Principal(GRAPH, frozenset({"returns"}))), {"carl"}, "graph is not among"),
        (approval(sha256="b" * 64), {GRAPH}, "another file"),
        (approval(sha256=None), {GRAPH}, "another file"),
        (approval(reason=" \n"), {GRAPH}, "no reason"),
        (approval(), {"ada"}, "ada submitted it"),
        (approval(), {"ada", GRAPH}, "ada submitted it"),
        (approval(), set(), "who submitted it is not recorded"),
    ],
)
def test_an_approval_that_does_not_count_releases_nothing_and_is_in_the_reasons(usecase, given, submitted_by, why):
    decision = decided(usecase, given, submitted_by=frozenset(submitted_by))
    assert decision.decision == "wait"
    assert why in decision.failures


def test_one_approval_that_counts_is_enough(usecase):
    assert decided(usecase, approval(Principal("eve")), approval(sha256="b"), approval(BOB)).decision == "release"


def test_the_submitter_may_approve_where_the_policy_permits_it(usecase):
    release = usecase.release.model_copy(update={"submitter_may_approve": True})
    lenient = usecase.model_copy(update={"release": release})
    assert decided(lenient, approval(), submitted_by=frozenset({"ada"})).decision == "release"
    assert decided(lenient, approval(), submitted_by=frozenset()).decision == "release"


def test_without_declared_approvers_no_approval_counts(usecase):
    without = usecase.model_copy(update={"approvers": []})
    assert decided(without, approval(), approval(BOB)).decision == "wait"
    assert "ada is not among the approvers of shop (none declared)" in decided(without, approval()).failures
    assert "waits for an approver, but none is declared: throughline approve" in decided(without).failures


def test_an_approval_does_not_mend_a_rule_that_failed(usecase):
    assert decided(usecase, approval(), auc=0.5).decision == "reject"
    assert decided(usecase, auc=0.5).decision == "reject"


names = st.sampled_from(["ada", "bob", "eve", GRAPH])
approvals = st.builds(
    Approval,
    st.builds(Principal, names, st.frozensets(st.sampled_from(["returns", "staff"]))),
    st.sampled_from([SHA, "b" * 64, None]),
    st.sampled_from(["seen", "", " "]),
)


@settings(max_examples=200)
@given(st.lists(approvals, max_size=4), st.frozensets(names))
def test_a_release_has_a_sound_approval_of_this_file_with_a_reason(usecase, given, submitted_by):
    sound = any(
        (one.by.name == "bob" or "returns" in one.by.groups)
        and one.by.name != GRAPH
        and one.by.name not in submitted_by
        and submitted_by
        and one.sha256 == SHA
        and one.reason.strip()
        for one in given
    )
    assert (decided(usecase, *given, submitted_by=submitted_by).decision == "release") == bool(sound)


def test_submitters_are_those_of_the_tags_and_of_the_history():
    registered = event_of("registered", "shop/3", "carl", new=SHA)
    assert submitters({"submitter": "ada"}, [registered]) == {"ada", "carl"}
    assert submitters({}, [registered]) == {"carl"}
    assert submitters({"submitter": ""}, []) == frozenset()


# Recorded approvals. The submitter may approve, so that the registry is not read.


@pytest.fixture
def waiting(settings: Settings, usecase: UseCase) -> UseCase:
    release = usecase.release.model_copy(update={"submitter_may_approve": True})
    lenient = usecase.model_copy(update={"release": release, "approvers": ["bob"]})
    decisions.recorded(settings, "shop", decided(lenient))
    return lenient


def test_an_approval_is_recorded_once_and_counts(settings, waiting):
    event = decisions.approve(settings, waiting, MODEL, BOB, "numbers seen")
    decisions.approve(settings, waiting, MODEL, BOB, "numbers seen, again")
    (recorded,) = events(settings, "shop", action="approved")
    assert recorded == event
    assert (event.actor, event.target, event.new, event.reason) == ("bob", "shop/3", SHA, "numbers seen")
    assert decisions.approval_of(settings, waiting, MODEL).verdict == "pass"


@pytest.mark.parametrize(
    ("who", "reason", "why"),
    [(Principal("eve"), "please", "eve is not among the approvers"), (BOB, "  ", "bob gave no reason")],
)
def test_an_approval_that_would_not_count_is_refused_and_not_recorded(settings, waiting, who, reason, why):
    with pytest.raises(ThroughlineError, match=why):
        decisions.approve(settings, waiting, MODEL, who, reason)
    assert events(settings, "shop", action="approved") == []


def test_an_approval_written_into_the_table_is_checked_like_one_by_the_command(settings, waiting):
    append(settings, "shop", event_of("approved", "shop/3", "eve", new=SHA, reason="me"))
    append(settings, "shop", event_of("approved", "shop/3", "bob", new="b" * 64, reason="another file"))
    append(settings, "shop", event_of("approved", "shop/31", "bob", new=SHA, reason="another version"))
    verdict = decisions.approval_of(settings, waiting, MODEL)
    assert verdict.verdict == "cannot_say"
    assert "eve is not among" in verdict.bound
    assert "bob approved another file" in verdict.bound


def test_only_a_version_that_waits_is_approved(settings, waiting):
    with pytest.raises(ThroughlineError, match=r"shop/4 waits for no approval: the gate has not decided"):
        decisions.approve(settings, waiting, MODEL.model_copy(update={"version": 4}), BOB, "blind")
    other = MODEL.model_copy(update={"sha256": "b" * 64})
    with pytest.raises(ThroughlineError, match="the gate has not decided about this file"):
        decisions.approve(settings, waiting, other, BOB, "other bytes")
    decisions.recorded(settings, "shop", decided(waiting, auc=0.5))
    with pytest.raises(ThroughlineError, match=r"the gate's decision is reject \(auc fail"):
        decisions.approve(settings, waiting, MODEL, BOB, "anyway")
    auto = waiting.model_copy(update={"release": waiting.release.model_copy(update={"policy": "auto"})})
    with pytest.raises(ThroughlineError, match="nothing to approve"):
        decisions.approve(settings, auto, MODEL, BOB, "anyway")


def test_the_approval_of_a_former_approver_does_not_count(settings, waiting):
    decisions.approve(settings, waiting, MODEL, BOB, "numbers seen")
    assert objection(waiting.model_copy(update={"approvers": ["zoe"]}), MODEL, {GRAPH}, approval(BOB))
    without = waiting.model_copy(update={"approvers": ["zoe"]})
    assert decisions.approval_of(settings, without, MODEL).verdict == "cannot_say"


# Decisions


def test_a_decision_is_recorded_once_and_another_one_beside_it(settings, usecase):
    first = decisions.recorded(settings, "shop", decided(usecase))
    again = decided(usecase).model_copy(update={"decided_at": NOW + timedelta(hours=1)})
    assert decisions.recorded(settings, "shop", again) == first
    rejected = decisions.recorded(settings, "shop", decided(usecase, auc=0.5))
    assert decisions.decisions(settings, "shop", "shop/3") == [first, rejected]
    assert decisions.newest(settings, "shop", "shop/3") == rejected
    reasons = [event.reason for event in events(settings, "shop", action="decided")]
    assert reasons == [first.failures, rejected.failures]
    back = decisions.recorded(settings, "shop", again)
    assert (decisions.newest(settings, "shop", "shop/3"), back.decided_at) == (back, again.decided_at)


def test_a_decision_with_a_nan_is_the_same_when_it_comes_again(settings, usecase):
    first = decisions.recorded(settings, "shop", decided(usecase, auc=float("nan")))
    assert "auc cannot say" in first.failures
    decisions.recorded(settings, "shop", decided(usecase, auc=float("nan")))
    assert len(events(settings, "shop", action="decided")) == 1


def test_only_a_release_of_this_file_counts_as_released(settings, usecase):
    decisions.recorded(settings, "shop", decided(usecase))
    assert decisions.released(settings, "shop", MODEL) is None
    release = decisions.recorded(settings, "shop", decided(usecase, approval()))
    decisions.recorded(settings, "shop", decided(usecase, auc=0.5))
    assert decisions.released(settings, "shop", MODEL) == release
    assert decisions.released(settings, "shop", MODEL.model_copy(update={"sha256": "b" * 64})) is None


def test_a_decision_that_cannot_be_read_is_an_error(settings):
    append(settings, "shop", event_of("decided", "shop/3", GRAPH, new='{"decision": "release"}'))
    with pytest.raises(ThroughlineError, match=r"decision about shop/3 .* cannot be read"):
        decisions.released(settings, "shop", MODEL)
