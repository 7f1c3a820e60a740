"""Rollouts without a server: windows of evidence drawn from distributions, states, verdicts, what a target reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from tests.support.judged import a_model
from throughline.records import Revision, RevisionSet
from throughline.rollout.comparison import Reference
from throughline.rollout.evidence import SCORE_BINS, Counts, Window
from throughline.rollout.judge import Verdict
from throughline.rollout.state import Rollout
from throughline.rollout.strategy import begun
from throughline.rollout.target import Served
from throughline.usecase.release import Release

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


def a_revision(version: int, name: str = "shop") -> Revision:
    digest = f"{version:064x}"
    return Revision(
        revision=f"v{version}-{digest[-12:]}", usecase=name, name=name, version=version, sha256=digest,
        file=f"{version}/model.onnx", deployed_at=START,
    )  # fmt: skip


def a_rollout(now: datetime = START, **plan: Any) -> Rollout:
    """Version 2 beside version 1. `plan`: as declared."""
    declared = TypeAdapter(Release).validate_python(plan)
    model = a_model(2, "shop", trained_until=START)
    return begun(
        "r1", declared, a_revision(1), a_revision(2), model, now, actor="ada", reason="better", reference=((), ())
    )


def verdict(conclusion: str, *reasons: str, better: bool = False) -> Verdict:
    return Verdict(conclusion=conclusion, reasons=reasons or (f"because {conclusion}",), better=better)


def serving(revisions: RevisionSet) -> tuple[Served, ...]:
    """What a target reports that serves this set."""
    return tuple(Served(revision=one.revision, role=one.role, weight=one.weight) for one in revisions.revisions)


def reference(shift: float = 0.0) -> Reference:
    """Score counts of an evaluation in which the candidate's scores were shifted against stable's."""
    scores = np.random.default_rng(2013).beta(2, 5, 20_000)

    def counts(of: np.ndarray) -> tuple[float, ...]:
        return tuple(np.histogram(of, np.linspace(0, 1, SCORE_BINS + 1))[0].tolist())

    return counts(scores), counts(np.clip(scores + shift, 0, 1))
