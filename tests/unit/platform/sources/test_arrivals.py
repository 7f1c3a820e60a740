"""Arrived days are requested once in any order of events; a failed run is retried a limited number of times."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughline.sources.arrivals import ATTEMPTS, Request, RunState, Seen, changed, decide

FIRST = date(2024, 3, 1)
DAYS = [FIRST + timedelta(days=n) for n in range(10)]


class Watch:
    """A source of which each part has a stamp and days, and the state of its sensor."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[str, set[date]]] = {}
        self.seen = Seen()
        self.outcome: RunState | None = None
        self.there: set[date] = set()

    def put(self, name: str, stamp: str, *days: date) -> None:
        self.parts[name] = (stamp, set(days))

    def look(self, until: date = DAYS[-1]) -> Request | None:
        stamps = {name: stamp for name, (stamp, _) in self.parts.items()}
        arrived = {name: self.parts[name][1] for name in changed(self.seen, stamps)}
        first_look = self.seen == Seen()
        there = self.there if first_look else set()
        outcome = self.outcome if self.seen.request else None
        self.seen, launch = decide(self.seen, stamps, arrived, outcome, FIRST, until, there)
        # what is remembered survives a restart
        self.seen = Seen.model_validate_json(self.seen.model_dump_json())
        if launch:
            self.outcome = "under_way"
        return launch


@pytest.fixture
def watch() -> Watch:
    return Watch()


def span(request: Request | None) -> tuple[date, date] | None:
    return (request.first, request.last) if request else None


def test_without_parts_nothing_is_requested(watch: Watch) -> None:
    assert watch.look() is None


def test_days_that_follow_each_other_are_one_request_and_others_come_after_it(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1], DAYS[2])
    watch.put("b", "1", DAYS[3], DAYS[6])
    assert span(watch.look()) == (DAYS[1], DAYS[3])
    assert watch.look() is None
    watch.outcome = "succeeded"
    assert span(watch.look()) == (DAYS[6], DAYS[6])
    watch.outcome = "succeeded"
    assert watch.look() is None


def test_a_thousand_ticks_without_a_new_file_make_one_request(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1])
    assert watch.look()
    for n in range(1000):
        watch.outcome = "under_way" if n < 500 else "succeeded"
        assert watch.look() is None


def test_a_changed_part_requests_its_days_and_those_it_had_before(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1])
    watch.look()
    watch.outcome = "succeeded"
    watch.put("a", "2", DAYS[2])
    assert span(watch.look()) == (DAYS[1], DAYS[2])


def test_a_removed_part_requests_nothing_and_is_new_when_it_returns(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1])
    watch.look()
    watch.outcome = "succeeded"
    del watch.parts["a"]
    assert watch.look() is None
    watch.put("a", "1", DAYS[1])
    assert span(watch.look()) == (DAYS[1], DAYS[1])


def test_a_day_is_requested_when_it_has_ended_and_not_before(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1], DAYS[2])
    assert span(watch.look(until=DAYS[2])) == (DAYS[1], DAYS[1])
    watch.outcome = "succeeded"
    assert watch.look(until=DAYS[2]) is None
    assert span(watch.look(until=DAYS[3])) == (DAYS[2], DAYS[2])


def test_rows_known_before_the_first_day_belong_to_it(watch: Watch) -> None:
    watch.put("a", "1", FIRST - timedelta(days=40))
    assert span(watch.look()) == (FIRST, FIRST)


def test_a_failed_run_is_retried_twice_then_when_something_changes(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1])
    keys = []
    while (request := watch.look()) is not None:
        keys.append(request.key)
        watch.outcome = "failed"
    assert len(set(keys)) == len(keys) == ATTEMPTS
    assert watch.seen.given_up == [DAYS[1]]
    for _ in range(100):
        assert watch.look() is None
    watch.put("a", "2", DAYS[1])
    request = watch.look()
    assert span(request) == (DAYS[1], DAYS[1])
    assert request is not None
    assert request.attempt == 1
    assert request.key not in keys
    assert watch.seen.given_up == []


def test_a_request_whose_run_never_started_is_launched_again_under_the_same_key(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1])
    first = watch.look()
    watch.outcome = "never_started"
    assert watch.look() == first


def test_a_part_that_arrives_during_a_run_is_requested_after_it_also_for_the_same_day(watch: Watch) -> None:
    watch.put("a", "1", DAYS[1])
    first = watch.look()
    watch.put("b", "1", DAYS[1])
    assert watch.look() is None
    watch.outcome = "failed"
    assert watch.look().attempt == 2  # type: ignore[union-attr]
    watch.outcome = "succeeded"
    again = watch.look()
    assert span(again) == span(first)
    assert again.key != first.key  # type: ignore[union-attr]


def test_content_that_returns_is_requested_again(watch: Watch) -> None:
    keys = set()
    for stamp in ("1", "2", "1"):
        watch.put("a", stamp, DAYS[1])
        request = watch.look()
        assert request is not None
        keys.add(request.key)
        watch.outcome = "succeeded"
    assert len(keys) == 3


def test_at_the_first_tick_days_that_were_ingested_are_not_requested(watch: Watch) -> None:
    watch.there = {DAYS[1]}
    watch.put("a", "1", DAYS[1], DAYS[2])
    assert span(watch.look()) == (DAYS[2], DAYS[2])
    watch.outcome = "succeeded"
    watch.put("a", "2", DAYS[1])
    assert span(watch.look()) == (DAYS[1], DAYS[2])


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_after_any_order_of_events_every_day_was_requested_after_its_last_change(seed: int) -> None:
    """Parts arrive and change, runs succeed and fail: at last each day was ingested after its last change."""
    random, watch = Random(seed), Watch()
    ingested_at: dict[date, int] = {}
    touched: dict[date, int] = {}
    running: tuple[Request, int] | None = None
    now = 0

    def step(quiet: bool) -> None:
        nonlocal now, running
        now += 1
        if not quiet and random.random() < 0.5:
            name = random.choice("abc")
            days = set(random.sample(DAYS[:-1], random.randint(1, 3)))
            before = watch.parts.get(name, ("", set()))[1]
            watch.put(name, str(now), *days)
            touched.update(dict.fromkeys(days | before, now))
        if running and (quiet or random.random() < 0.5):
            # fewer failures than attempts, or it would be given up
            request, started = running
            ends = "succeeded" if quiet or request.attempt == ATTEMPTS else random.choice(["succeeded", "failed"])
            watch.outcome = ends  # type: ignore[assignment]
            if ends == "succeeded":
                days = [day for day in DAYS if request.first <= day <= request.last]
                ingested_at.update(dict.fromkeys(days, started))
            running = None
        request = watch.look()
        if request:
            assert running is None
            running = (request, now)

    for _ in range(random.randint(1, 40)):
        step(quiet=False)
    for _ in range(30):
        step(quiet=True)
    assert running is None
    assert {day for day in touched if ingested_at.get(day, -1) < touched[day]} == set()
    assert set(ingested_at) <= set(touched)
