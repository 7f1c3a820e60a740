"""Evidence: differences of cumulative counts, and the pages they are read from."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from tests.support.rollouts import BOUNDS, START
from throughline.rollout.evidence import SCORE_BINS, Counts, Window
from throughline.rollout.scrape import look_of
from throughline.rollout.target import PRODUCTION, SHADOW

LABELS = ["model_name", "model_version", "revision", "role", "traffic"]
LATENCY = tuple([1.0] * (len(BOUNDS) + 1))


def test_what_was_done_between_two_looks_is_their_difference():
    before = Counts(requests=10, errors=1, latency=LATENCY, outcomes=2, loss=0.5)
    now = Counts(requests=30, errors=4, latency=tuple(3.0 for _ in LATENCY), scores=(2.0,) * 20, outcomes=5, loss=1.5)
    assert now.minus(before) == Counts(
        requests=20, errors=3, latency=tuple(2.0 for _ in LATENCY), scores=(2.0,) * 20, outcomes=3, loss=1.0
    )
    assert before.plus(now).minus(now) == before.model_copy(update={"scores": (0.0,) * 20})


@pytest.mark.parametrize(
    "now",
    [
        Counts(requests=5, latency=LATENCY),
        Counts(requests=50),
        Counts(requests=50, latency=(9.0,) * 3),
    ],
    ids=["fewer requests", "no histogram", "other bins"],
)
def test_counts_that_fell_are_those_of_a_server_that_began_anew(now):
    before = Counts(requests=10, latency=LATENCY)
    window = Window(start=START, end=START, latency_bounds=BOUNDS, stable=now.minus(before), candidate=Counts())
    assert "fell" in window.fault()


@pytest.mark.parametrize(
    ("counts", "fault"),
    [
        (Counts(requests=1, errors=2), "more errors than requests"),
        (Counts(requests=1, latency=(1.0,)), "latency has 1 bins"),
        (Counts(requests=1, scores=(1.0,)), "scores have 1 bins, not 20"),
    ],
)
def test_counts_in_conflict_are_a_fault(counts, fault):
    assert fault in Window(
        start=START, end=START, latency_bounds=BOUNDS, stable=Counts(), candidate=counts
    ).fault()  # fmt: skip


def test_counts_are_read_from_a_page_of_metrics():
    registry = CollectorRegistry()
    errors = Counter("throughline_prediction_errors", "e", LABELS, registry=registry)
    seconds = Histogram("throughline_prediction_seconds", "s", LABELS, buckets=BOUNDS, registry=registry)
    scores = Histogram(
        "throughline_score", "s", LABELS, buckets=[n / SCORE_BINS for n in range(1, SCORE_BINS + 1)], registry=registry
    )
    live, copied = ("shop", "2", "v2-a", "canary", "production"), ("shop", "2", "v2-a", "canary", "shadow")
    other = ("other", "2", "v2-a", "canary", "production")
    for labels in (live, other):
        for value in (0.0005, 0.003, 9.0):
            seconds.labels(*labels).observe(value)
    errors.labels(*live).inc(2)
    errors.labels(*copied).inc(1)
    for value in (0.0, 0.04, 0.51, 1.0):
        scores.labels(*live).observe(value)
    look = look_of(generate_latest(registry).decode(), "shop", {"v2-a": (7, 1.5), "v1-b": (3, 0.5)}, START)
    assert look.latency_bounds == BOUNDS
    found = look.of("v2-a", PRODUCTION)
    assert (found.requests, found.errors, found.outcomes, found.loss) == (5, 2, 7, 1.5)
    assert found.latency == (1, 0, 1, 0, 0, 0, 0, 0, 0, 1)
    assert found.scores == (2, *[0] * 9, 1, *[0] * 8, 1)
    assert look.of("v2-a", SHADOW) == Counts(requests=1, errors=1)
    assert look.of("v2-a", PRODUCTION, SHADOW).requests == 6
    assert look.of("v1-b", PRODUCTION) == Counts(outcomes=3, loss=0.5)
    assert look.of("unknown", PRODUCTION) == Counts()
