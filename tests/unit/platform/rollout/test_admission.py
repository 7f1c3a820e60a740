"""Only what the gate released is deployed: this version, this file, every rule passed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from throughline.records import GateDecision, ModelRecord, RuleVerdict
from throughline.rollout.admission import refusal

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = ModelRecord(
    name="flight_delay",
    version=4,
    run_id="r",
    sha256="a" * 64,
    uri="/nowhere",
    dataset_fingerprint="f",
    trained_until=NOW,
    trainer="t",
    parameters={},
)
PASSED = RuleVerdict(rule="auc", verdict="pass", value=0.75, bound="at least 0.72")
RELEASE = GateDecision(model="flight_delay/4", sha256="a" * 64, decision="release", decided_at=NOW, rules=[PASSED])


def test_a_release_of_this_version_and_file_is_deployed():
    assert refusal(RELEASE, MODEL, RELEASE, "auto") is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decision": "reject"}, "the gate's decision is reject"),
        ({"model": "flight_delay/3"}, "decided about flight_delay/3"),
        ({"sha256": "b" * 64}, "digest bbbbbbbbbbbb"),
        ({"rules": []}, "no rules"),
        ({"rules": [PASSED, PASSED.model_copy(update={"verdict": "cannot_say", "value": None})]}, "not every rule"),
        ({"rules": [PASSED.model_copy(update={"verdict": "fail"})]}, "not every rule"),
    ],
)
def test_anything_less_is_refused_with_the_reason(change, reason):
    forged = RELEASE.model_copy(update=change)
    assert reason in refusal(forged, MODEL, forged, "auto")


def test_a_decision_that_differs_from_the_recorded_one_in_a_digit_is_refused():
    assert "no decision about it" in refusal(RELEASE, MODEL, None, "auto")
    later = RELEASE.model_copy(update={"decision": "reject", "decided_at": NOW + timedelta(hours=1)})
    assert "another decision about it: reject, 2026-01-01T01:00" in refusal(RELEASE, MODEL, later, "auto")
    nicer = RELEASE.model_copy(update={"rules": [PASSED.model_copy(update={"value": 0.7500000001})]})
    assert "another decision" in refusal(nicer, MODEL, RELEASE, "auto")


def test_under_the_manual_policy_a_release_names_an_approval():
    assert "the decision has no approval" in refusal(RELEASE, MODEL, RELEASE, "manual")
    approval = RuleVerdict(rule="approval", verdict="pass", value=None, bound="by ada: seen")
    approved = RELEASE.model_copy(update={"rules": [PASSED, approval]})
    assert refusal(approved, MODEL, approved, "manual") is None
