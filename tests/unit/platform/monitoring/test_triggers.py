"""The same drift retrains once; a failed attempt may be tried again, but not without end and never under an old key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughline.monitoring.triggers import MAX_ATTEMPTS, Retraining, Verdict, decide_retraining
from throughline.records import CalibrationRecord
from throughline.usecase import Calibration, Monitoring

NOW = datetime(2013, 6, 1, 4, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
POLICY = Monitoring(
    calibration=Calibration(window="14d", gap=0.05, minimum_outcomes=10), max_model_age="56d", cool_down="14d"
)


def observed(verdict: str, now: datetime, trained_until: datetime | None) -> CalibrationRecord:
    return CalibrationRecord(
        model="m/1",
        window_from=now - 14 * DAY,
        window_until=now,
        outcomes=100,
        mean_score=0.3,
        outcome_rate=0.2,
        verdict=verdict,  # type: ignore[arg-type]
        reason="gap +0.1000 is beyond 0.05",
        trained_until=trained_until,
    )


def decide(
    verdict: str = "drift",
    now: datetime = NOW,
    history: list[Retraining] | None = None,
    trained_until: datetime | None = NOW - DAY,
) -> Verdict:
    return decide_retraining(observed(verdict, now, trained_until), history or [], POLICY)


def past(state: str, at: datetime = NOW, window: str = "w") -> Retraining:
    return Retraining(window=window, requested_at=at, state=state)  # type: ignore[arg-type]


class Instance:
    """What a Dagster instance keeps: the runs that were requested, and every run key so far."""

    def __init__(self) -> None:
        self.runs: list[Retraining] = []
        self.keys: list[str] = []

    def tick(self, verdict: str, now: datetime) -> bool:
        """One look of the sensor; whether a run was started."""
        newest_first = self.runs[::-1]
        request = decide(verdict, now, newest_first)
        if not request.retrain:
            return False
        if request.run_key in self.keys:  # Dagster starts nothing for a key it has seen
            raise AssertionError(f"{request.run_key} was used before: this retraining would never run")
        self.keys.append(request.run_key)
        self.runs.append(Retraining(request.window, now, "running"))
        return True

    def end(self, state: Literal["succeeded", "failed"]) -> None:
        last = self.runs.pop()
        self.runs.append(Retraining(last.window, last.requested_at, state))


def test_a_thousand_ticks_of_the_same_drift_start_one_retraining() -> None:
    instance = Instance()
    started = 0
    for tick in range(1000):
        started += instance.tick("drift", NOW + tick * timedelta(minutes=15))  # ten days of the data clock
        if tick == 500:
            instance.end("succeeded")
    assert started == 1


def test_a_drift_that_stays_retrains_once_per_cool_down() -> None:
    instance = Instance()
    for hour in range(60 * 24):
        if instance.tick("drift", NOW + hour * HOUR):
            instance.end("succeeded")
    assert [run.requested_at - NOW for run in instance.runs] == [n * 14 * DAY for n in range(5)]


def test_the_cool_down_is_counted_on_the_data_clock_to_its_very_end() -> None:
    history = [past("succeeded", NOW - 14 * DAY + timedelta(microseconds=1))]
    assert not decide(history=history).retrain
    assert "cooling down" in decide(history=history).reason
    assert decide(history=[past("succeeded", NOW - 14 * DAY)]).retrain


def test_a_failed_attempt_is_tried_again_under_a_key_of_its_own_and_then_given_up() -> None:
    instance = Instance()
    for _ in range(1000):
        if instance.tick("drift", NOW):
            instance.end("failed")
    assert len(instance.keys) == MAX_ATTEMPTS == 3
    assert {run.window for run in instance.runs} == {NOW.isoformat()}
    assert "gave up after 3 failed attempts" in decide(history=instance.runs[::-1]).reason


def test_attempts_far_apart_keep_counting() -> None:
    """The first attempt may have left the cool-down when the second fails; the third key must be a third key."""
    instance = Instance()
    for day in (0, 13, 15, 16, 40):
        if instance.tick("drift", NOW + day * DAY):
            instance.end("failed")
    assert [key.rpartition("-")[2] for key in instance.keys] == ["1", "2", "3", "1"]


def test_a_success_after_failures_cools_down_like_any_other() -> None:
    history = [past("succeeded", NOW - DAY), past("failed", NOW - 2 * DAY)]
    assert not decide(history=history).retrain


@pytest.mark.parametrize("verdict", ["drift", "ok"])
def test_a_running_retraining_blocks_whatever_the_cause_and_however_old(verdict: str) -> None:
    verdict = decide(verdict, history=[past("running", NOW - 90 * DAY)], trained_until=NOW - 90 * DAY)
    assert not verdict.retrain
    assert "already running" in verdict.reason


@pytest.mark.parametrize("verdict", ["ok", "cannot_say"])
def test_without_a_drift_nothing_is_retrained(verdict: str) -> None:
    assert not decide(verdict).retrain
    assert not decide(verdict, trained_until=None).retrain


@pytest.mark.parametrize("verdict", ["ok", "cannot_say"])
def test_an_old_model_is_retrained_whether_or_not_it_can_be_judged(verdict: str) -> None:
    assert not decide(verdict, trained_until=NOW - 56 * DAY).retrain
    old = decide(verdict, trained_until=NOW - 57 * DAY)
    assert old.retrain
    assert old.reason.startswith("age: ")
    assert "57 days" in old.reason


def test_age_cools_down_too() -> None:
    """A gate that rejects leaves the old model in place: its age must not train at every look."""
    assert not decide("ok", history=[past("succeeded", NOW - DAY)], trained_until=NOW - 90 * DAY).retrain


def test_the_same_history_gives_the_same_verdict() -> None:
    history = [past("failed", NOW - DAY, "w"), past("succeeded", NOW - 30 * DAY, "v")]
    assert len({decide(history=history) for _ in range(10)} | {decide(history=history[::-1])}) == 1
    assert decide(history=history).run_key == "w/attempt-2"


steps = st.tuples(
    st.integers(0, 24 * 9),
    st.sampled_from(["drift", "drift", "ok", "cannot_say"]),
    st.sampled_from(["succeeded", "failed", "failed", None]),
)


@given(st.lists(steps, max_size=40))
def test_automation_is_bounded_whatever_happens(life: list[tuple[int, str, str | None]]) -> None:
    instance, now = Instance(), NOW
    for hours, verdict, end in life:
        now += hours * HOUR
        running = bool(instance.runs) and instance.runs[-1].state == "running"
        started = instance.tick(verdict, now)
        assert not (started and running)
        if end and instance.runs and instance.runs[-1].state == "running":
            instance.end(end)  # type: ignore[arg-type]
    for run in instance.runs:
        around = [r for r in instance.runs if timedelta(0) <= r.requested_at - run.requested_at < 14 * DAY]
        assert len(around) <= MAX_ATTEMPTS
        later = [r for r in instance.runs[instance.runs.index(run) + 1 :] if r in around and r is not run]
        assert not (run.state == "succeeded" and later)


def test_every_answer_gives_the_cause_and_what_stands_against_it() -> None:
    gap = "gap +0.1000 is beyond 0.05"
    assert decide("ok") == Verdict(False, f"ok: {gap}")
    assert decide("cannot_say") == Verdict(False, f"cannot_say: {gap}")
    yes = decide("drift")
    assert yes == Verdict(True, f"drift: {gap}", NOW.isoformat(), f"{NOW.isoformat()}/attempt-1")
    running = decide(history=[past("running")])
    assert running == Verdict(False, f"drift: {gap}; a retraining is already running")
    done = decide(history=[past("succeeded", NOW - DAY)])
    assert done == Verdict(False, f"drift: {gap}; cooling down since {(NOW - DAY).isoformat()}")
    failed = decide(history=[past("failed")] * MAX_ATTEMPTS)
    assert failed == Verdict(False, f"drift: {gap}; gave up after 3 failed attempts, cooling down")
    assert [answer.retrain for answer in (running, done, failed)] == [False, False, False]
