"""A rollout as people see it: its state in words and as JSON, a picture of shares and evidence over time. Pure.

Owns: drawing, wording. Does not own: where it is shown (`assets/`, `cli/`).
"""

from __future__ import annotations

import io
from datetime import datetime
from typing import Any

from throughline.rollout.state import Rollout
from throughline.rollout.strategy import share_of, stage_of, stages


def state_of(rollout: Rollout) -> str:
    """One word: running, paused, or its outcome, which may still have to be carried out."""
    if rollout.outcome is not None:
        word = rollout.outcome.replace("_", " ")
        return word if rollout.ended_at else f"{word}, being carried out"
    return "paused" if rollout.paused_at else "running"


def headline(rollout: Rollout, now: datetime) -> str:
    """Versions, stage, verdict and deadline in one line."""
    versions = f"{rollout.model.reference} beside {rollout.stable.model}"
    if rollout.outcome is not None:
        return f"{versions}: {state_of(rollout)}: {rollout.why}"
    place = f"stage {rollout.stage + 1} of {len(stages(rollout.plan))}, {stage_of(rollout)}"
    left = max(0, round((rollout.deadline_at - (rollout.paused_at or now)).total_seconds()))
    found = str(rollout.verdict) if rollout.verdict else "not looked at yet"
    trouble = f"; {rollout.trouble}" if rollout.trouble else ""
    return f"{versions}: {state_of(rollout)}, {place}, {found}; {left} s to the deadline{trouble}"


def fields_of(rollout: Rollout) -> dict[str, Any]:
    """A rollout as `--json` shows it."""
    as_stored = {"started_at", "deadline_at", "ended_at", "why", "verdict", "trouble"}
    return {
        "usecase": rollout.usecase,
        "rollout": rollout.rollout,
        "state": state_of(rollout),
        "candidate": str(rollout.model.reference),
        "stable": str(rollout.stable.model),
        "strategy": rollout.plan.strategy,
        "stage": rollout.stage + 1,
        "stages": len(stages(rollout.plan)),
        "share": share_of(rollout),
        **rollout.model_dump(mode="json", include=as_stored),
        "requests": rollout.evidence.requests,
        "replayed": rollout.evidence.replayed,
        "steps": [step.model_dump(mode="json") for step in rollout.steps],
    }


def picture(rollout: Rollout) -> bytes:
    """PNG: the candidate's share above, the evidence against it by metric below, with the limit where it goes back."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # postpones matplotlib (0.5 s)
    from matplotlib.figure import Figure

    figure = Figure((8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    seconds = [(point.at - rollout.started_at).total_seconds() for point in rollout.points]
    above.step(seconds, [100 * point.share for point in rollout.points], where="post", color="#2a6f97")
    above.set(ylabel="answers, %", ylim=(-5, 105), title=f"{rollout.model.reference} beside {rollout.stable.model}")
    for metric in rollout.points[-1].evidence if rollout.points else ():
        values = [max(point.evidence.get(metric, 1.0), 1e-3) for point in rollout.points]
        below.plot(seconds, values, label=metric, linewidth=1.4)
    limits = [finding.limit for finding in rollout.verdict.findings] if rollout.verdict else []
    if limits:
        below.axhline(limits[0], color="#b23a48", linestyle="--", linewidth=1, label="rolled back")
    below.set(yscale="log", xlabel="seconds since the start", ylabel="evidence against it")
    if rollout.points and rollout.points[-1].evidence:
        below.legend(frameon=False, fontsize=8, ncols=3)
    for step in rollout.steps:
        for axes in (above, below):
            axes.axvline((step.at - rollout.started_at).total_seconds(), color="0.85", linewidth=0.8, zorder=0)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=90)
    return written.getvalue()
