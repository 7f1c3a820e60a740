"""The judge: a good revision advances, a bad one goes back with the reason, and what is missing never advances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rollouts import BOUNDS, drawn, reference, window
from throughline.rollout.evidence import Counts
from throughline.rollout.judge import Evidence, observed, verdict
from throughline.usecase.release import Judge

JUDGE = Judge()
REFERENCE = reference()
STABLE, CANDIDATE = 90, 10  # requests per look


def judged(looks, stable, candidate, *, judge=JUDGE, seed=1, shares=(STABLE, CANDIDATE), samples=200):
    """The verdict after that many looks, or the first that rolls back, and how many. Look -> options of `drawn`."""
    random, known = np.random.default_rng(seed), Evidence()
    for look in range(looks):
        one = window(drawn(random, shares[0], **stable(look)), drawn(random, shares[1], **candidate(look)), look)
        known = observed(known, one, judge, REFERENCE)
        found = verdict(known, judge, samples)
        if found.conclusion == "roll_back":
            break
    return found, look + 1


def fine(_look):
    return {"errors": 0.002}


def test_a_good_revision_advances():
    found, _ = judged(40, fine, fine)
    assert (found.conclusion, found.reasons) == ("advance", ("within tolerance: errors, latency, scores, evaluation",))


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        pytest.param({"errors": 0.1}, "errors", id="errors"),
        pytest.param({"seconds": 0.040}, "latency", id="slow"),
        pytest.param({"shift": 0.5}, "evaluation", id="shifted scores"),
        pytest.param({"shift": -0.3}, "evaluation", id="scores shifted down"),
        pytest.param({"labelled": 1.0, "brier": 0.3}, "outcomes", id="worse outcomes"),
        pytest.param({"errors": 1.0}, "errors", id="each request fails"),
    ],
)
def test_a_bad_revision_is_rolled_back_with_the_reason(fault, metric):
    found, _ = judged(200, lambda _: {"labelled": 1.0}, lambda _: {"labelled": 1.0} | fault)
    assert found.conclusion == "roll_back"
    assert metric in {reason.partition(":")[0] for reason in found.reasons}


@pytest.mark.parametrize(("offline", "live", "fails"), [(0.0, 0.12, True), (0.12, 0.12, False), (0.12, 0.4, True)])
def test_a_distance_of_scores_is_judged_by_the_one_in_the_evaluation(offline, live, fails):
    """A retrained version may have other scores, if it had them offline; the tolerance to stable's is wide."""
    random, known = np.random.default_rng(1), Evidence()
    judge = Judge.model_validate({"scores": {"tolerance": 0.9}})
    for look in range(200):
        one = window(drawn(random, 90, shift=0.1), drawn(random, 30, shift=0.1 + live), look)
        known = observed(known, one, judge, reference(offline))
    found = verdict(known, judge, 200)
    assert (found.conclusion == "roll_back") == fails
    if fails:
        assert [reason.partition(":")[0] for reason in found.reasons] == ["evaluation"]


def test_scores_that_moved_for_both_are_nobodys_fault():
    """As by the hour of the day: what is scored now is not what was held out."""
    found, looks = judged(100, lambda _: {"shift": 0.4}, lambda _: {"shift": 0.4})
    assert (found.conclusion, looks) == ("advance", 100)


@pytest.mark.parametrize("shift", [0.3, -0.25])
def test_shifted_scores_are_found_without_an_evaluation(shift):
    random, known = np.random.default_rng(1), Evidence()
    for look in range(200):
        known = observed(known, window(drawn(random, 90), drawn(random, 10, shift=shift), look), JUDGE)
    found = verdict(known, JUDGE, 200)
    assert [reason.partition(":")[0] for reason in found.reasons] == ["scores"]


def test_what_makes_both_revisions_worse_is_no_fault_of_the_candidate():
    """A busy machine, an outage of the feature store: whatever the share of the candidate is at the time."""

    def disturbed(look):
        return {"errors": 0.5, "seconds": 0.2} if look % 20 >= 15 else {}

    for seed in range(5):
        found, looks = judged(100, disturbed, disturbed, seed=seed)
        assert (found.conclusion, looks) == ("advance", 100)
    # the candidate's share rises just when the outage begins: over all windows together it has failed more often
    random, known = np.random.default_rng(1), Evidence()
    for look in range(60):
        shares, both = ((95, 5), {}) if look < 40 else ((50, 50), {"errors": 0.3, "seconds": 0.2})
        known = observed(known, window(*(drawn(random, share, **both) for share in shares), look), JUDGE, REFERENCE)
    assert verdict(known, JUDGE, 200).conclusion == "advance"


def test_a_faster_and_surer_revision_advances():
    found, _ = judged(40, lambda _: {"errors": 0.05, "seconds": 0.05}, fine)
    assert found.conclusion == "advance"


def test_slower_than_stable_within_the_floor_is_fast_enough():
    found, _ = judged(60, lambda _: {"seconds": 0.001}, lambda _: {"seconds": 0.0035})
    assert found.conclusion == "advance"


def test_a_fault_that_begins_late_is_found():
    found, looks = judged(600, fine, lambda look: {"errors": 0.2 if look >= 400 else 0.002})
    assert found.conclusion == "roll_back"
    assert 400 < looks < 440


def test_few_requests_are_not_enough():
    found, _ = judged(10, fine, fine, samples=101)
    assert found.conclusion == "cannot_say"
    assert "100 of 101 requests of this step were seen" in found.reasons


def test_a_step_counts_its_own_requests():
    random = np.random.default_rng(1)
    known = Evidence()
    for look in range(30):
        known = observed(known, window(drawn(random, 90), drawn(random, 10), look), JUDGE, REFERENCE)
    assert verdict(known, JUDGE, 200).conclusion == "advance"
    assert verdict(known.next_step(), JUDGE, 200).conclusion == "cannot_say"


@pytest.mark.parametrize("missing", ["latency", "scores"])
@pytest.mark.parametrize("role", ["stable", "candidate"])
def test_without_a_histogram_on_a_side_it_cannot_be_said(missing, role):
    random, known = np.random.default_rng(1), Evidence()
    for look in range(40):
        counts = {"stable": drawn(random, 90), "candidate": drawn(random, 10)}
        counts[role] = counts[role].model_copy(update={missing: ()})
        known = observed(known, window(counts["stable"], counts["candidate"], look), JUDGE, REFERENCE)
    found = verdict(known, JUDGE, 200)
    assert found.conclusion == "cannot_say"
    assert any(reason.startswith(f"{missing}: ") for reason in found.reasons)


@pytest.mark.parametrize("known_of", [((), ()), ((1.0,) * 20, ()), ((), (1.0,) * 20)])
def test_without_scores_of_both_in_the_evaluation_the_other_metrics_are_judged(known_of):
    random, known = np.random.default_rng(1), Evidence()
    for look in range(40):
        known = observed(known, window(drawn(random, 90), drawn(random, 10), look), JUDGE, known_of)
    found = verdict(known, JUDGE, 200)
    assert (found.conclusion, found.reasons) == ("advance", ("within tolerance: errors, latency, scores",))
    assert [one.verdict for one in found.findings if one.metric == "evaluation"] == ["cannot_say"]


numbers = st.sampled_from([math.nan, math.inf, -math.inf, -1.0])
GOOD = Counts(requests=50, errors=1, latency=(5.0,) * 10, scores=(2.0,) * 20, outcomes=10, loss=1.5)


@given(
    field=st.sampled_from(["requests", "errors", "latency", "scores", "outcomes", "loss"]),
    number=numbers, role=st.sampled_from([0, 1]), place=st.integers(0, 8),
)  # fmt: skip
def test_a_window_with_a_number_that_is_none_is_never_an_advance_and_nobodys_fault(field, number, role, place):
    wrong = number
    if field in ("latency", "scores"):
        cells = list(getattr(GOOD, field))
        cells[place] = number
        wrong = tuple(cells)
    both = [GOOD, GOOD]
    both[role] = GOOD.model_copy(update={field: wrong})
    known = Evidence()
    for look in range(10):
        known = observed(known, window(GOOD, GOOD, look), JUDGE, (GOOD.scores, GOOD.scores))
    assert verdict(known, JUDGE, 200).conclusion == "advance"
    after = observed(known, window(*both), JUDGE, (GOOD.scores, GOOD.scores))
    found = verdict(after, JUDGE, 200)
    assert found.conclusion == "cannot_say"
    assert "the newest window cannot be judged" in found.reasons[0]
    assert after.tallies == known.tallies
    # the next good window judges on
    assert (
        verdict(observed(after, window(GOOD, GOOD), JUDGE, (GOOD.scores, GOOD.scores)), JUDGE, 200).conclusion
        == "advance"
    )


def test_evidence_survives_being_written_and_read():
    random, known, kept = np.random.default_rng(3), Evidence(), Evidence()
    for look in range(5):
        one = window(drawn(random, 90), drawn(random, 10, errors=0.1), look)
        known = observed(known, one, JUDGE, REFERENCE)
        kept = Evidence.model_validate_json(observed(kept, one, JUDGE, REFERENCE).model_dump_json())
    assert kept == known


def test_once_failed_is_failed_for_good():
    random, known = np.random.default_rng(3), Evidence()
    for look in range(40):
        one = window(drawn(random, 90), drawn(random, 10, errors=0.5 if look < 10 else 0.0), look)
        known = observed(known, one, JUDGE, REFERENCE)
    assert verdict(known, JUDGE, 200).conclusion == "roll_back"


def test_evidence_that_leans_against_the_candidate_holds_the_step():
    random, known = np.random.default_rng(4), Evidence()
    for look in range(200):
        known = observed(known, window(drawn(random, 50), drawn(random, 5, errors=0.08), look), JUDGE, REFERENCE)
        found = verdict(known, JUDGE, 20)
        if found.conclusion == "hold":
            assert found.reasons[0].startswith("errors: ")
            return
        assert found.conclusion == "cannot_say" or look < 20
    pytest.fail("it never held")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([1, 10, 50]))
def test_a_good_revision_is_not_rolled_back_in_fifty_looks(seed, share):
    found, _ = judged(50, fine, fine, seed=seed, shares=(100 - share, share), judge=Judge(false_alarm=1e-6), samples=50)
    assert found.conclusion in ("advance", "hold")


@pytest.mark.parametrize(("brier", "better"), [(0.08, True), (0.15, False), (0.22, False)])
def test_a_lower_loss_is_shown_by_outcomes_only(brier, better):
    random, known = np.random.default_rng(5), Evidence()
    judge = Judge.model_validate({"outcomes": {"tolerance": 0.2}})
    for look in range(60):
        one = window(drawn(random, 50, labelled=1.0), drawn(random, 50, labelled=1.0, brier=brier), look)
        known = observed(known, one, judge, REFERENCE)
    found = verdict(known, judge, 200)
    assert (found.conclusion, found.better) == ("advance", better)


def test_only_declared_metrics_are_judged():
    only = Judge(latency=None, scores=None, evaluation=None, outcomes=None)
    found, _ = judged(100, fine, lambda _: {"seconds": 1.0, "shift": 0.5}, judge=only)
    assert (found.conclusion, found.reasons) == ("advance", ("within tolerance: errors",))
    assert found.findings[0].limit == 100


def test_the_bounds_of_the_candidates_latency_are_not_below_what_it_is_given():
    """1.5 times 2 ms is 3 ms: the next bound is 4 ms, so answers of 3.5 ms are not counted against it."""
    slow = Counts(requests=100, latency=(0, 0, 100, *[0] * 7), scores=(5.0,) * 20)
    quick = Counts(requests=100, latency=(0, 100, *[0] * 8), scores=(5.0,) * 20)
    judge = Judge.model_validate({"latency": {"floor_ms": 0}})
    known = Evidence()
    for look in range(20):
        known = observed(known, window(quick, slow, look), judge, (slow.scores, slow.scores))
    assert BOUNDS[1:3] == (0.002, 0.004)
    assert verdict(known, judge, 200).conclusion == "advance"
