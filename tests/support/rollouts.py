"""Windows of evidence as two revisions would leave them: drawn from distributions, for tests of the judge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from throughline.rollout.evidence import SCORE_BINS, Counts, Window

START = datetime(2026, 1, 1, tzinfo=UTC)
BOUNDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)


def drawn(
    random: np.random.Generator,
    requests: int,
    *,
    errors: float = 0.0,
    seconds: float = 0.004,
    shift: float = 0.0,
    labelled: float = 0.0,
    brier: float = 0.15,
) -> Counts:
    """What a revision does with `requests`: failures, log-normal latencies around `seconds`, scores of Beta(2, 5) plus
    `shift`, and outcomes with uniform losses around `brier`."""
    failed = int(random.binomial(requests, errors))
    answered = requests - failed
    latencies = np.exp(random.normal(np.log(seconds), 0.4, answered))
    scores = np.clip(random.beta(2, 5, answered) + shift, 0, 1)
    known = int(random.binomial(answered, labelled))
    return Counts(
        requests=requests,
        errors=failed,
        latency=tuple(np.histogram(latencies, [0, *BOUNDS, np.inf])[0].tolist()),
        scores=tuple(np.histogram(scores, np.linspace(0, 1, SCORE_BINS + 1))[0].tolist()),
        outcomes=known,
        loss=float(random.uniform(0, 2 * brier, known).sum()),
    )


def window(stable: Counts, candidate: Counts, look: int = 0, *, replayed: bool = False) -> Window:
    """The window of look `look`, looks a second apart."""
    start = START + timedelta(seconds=look)
    return Window(
        start=start,
        end=start + timedelta(seconds=1),
        latency_bounds=BOUNDS,
        stable=stable,
        candidate=candidate,
        replayed=replayed,
    )


def reference() -> tuple[float, ...]:
    """Score counts of the evaluation of a candidate whose scores are not shifted."""
    scores = np.random.default_rng(2013).beta(2, 5, 20_000)
    return tuple(np.histogram(scores, np.linspace(0, 1, SCORE_BINS + 1))[0].tolist())
