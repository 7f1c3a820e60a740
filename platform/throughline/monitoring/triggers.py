"""When to retrain: the one place of that policy. Pure; everything on the data clock.

Without it a drift that lasts would start a training at every check. A drift starts one retraining, then the cool-down
passes, whatever the gate decided; only a retraining that failed itself is tried again, `MAX_ATTEMPTS` times in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from throughline.records import CalibrationRecord
from throughline.usecase import Monitoring

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Retraining:
    """An earlier retraining: the key of its window, when it was requested (data clock) and its state."""

    window: str
    requested_at: datetime
    state: Literal["running", "succeeded", "failed"]


@dataclass(frozen=True)
class Verdict:
    """Whether to retrain now. `run_key` is the same for the same evidence and history."""

    retrain: bool
    reason: str
    window: str = ""
    run_key: str = ""


def decide_retraining(calibration: CalibrationRecord, history: list[Retraining], policy: Monitoring) -> Verdict:
    """Retrain on drift or old age, unless one is running or the cool-down of the last one has not passed.

    With a history it never retrains where it would not with an empty one.
    """
    now = calibration.window_until
    age = now - calibration.trained_until if calibration.trained_until else None
    if calibration.verdict == "drift":
        cause = f"drift: {calibration.reason}"
    elif age is not None and age > policy.max_model_age:
        cause = f"age: the model was trained until {age.days} days ago, {policy.max_model_age.days} are allowed"
    else:
        return Verdict(False, f"{calibration.verdict}: {calibration.reason}")

    if any(past.state == "running" for past in history):
        return Verdict(False, f"{cause}; a retraining is already running")
    recent = [past for past in history if now - past.requested_at < policy.cool_down]
    done = [past for past in recent if past.state == "succeeded"]
    if done:
        since = max(past.requested_at for past in done)
        return Verdict(False, f"{cause}; cooling down since {since.isoformat()}")
    window = max(recent, key=lambda past: past.requested_at).window if recent else now.isoformat()
    # all of the window, however long ago: a number counted twice would be a run key that never runs again
    attempts = sum(past.window == window for past in history)
    if attempts >= MAX_ATTEMPTS:
        return Verdict(False, f"{cause}; gave up after {attempts} failed attempts, cooling down")
    return Verdict(True, cause, window, f"{window}/attempt-{attempts + 1}")
