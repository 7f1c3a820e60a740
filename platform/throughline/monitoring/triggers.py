"""When to retrain: the one place of that policy. Pure; everything on the data clock.

The incident behind it: a drift alarm that fires at every look starts a training at every look. So a drift retrains
once, then waits out the cool-down, whatever the outcome of the gate was; only a retraining that itself failed may be
tried again, and not without end.
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
    """An earlier retraining: the key of its window, when it was asked for (data clock) and how it stands."""

    window: str
    requested_at: datetime
    state: Literal["running", "succeeded", "failed"]


@dataclass(frozen=True)
class Verdict:
    """Whether to retrain now. `run_key` is stable: asked a thousand times, it is the same."""

    retrain: bool
    reason: str
    window: str = ""
    run_key: str = ""


def decide_retraining(calibration: CalibrationRecord, history: list[Retraining], policy: Monitoring) -> Verdict:
    """Retrain on drift or old age, unless one is running or the cool-down of the last one has not passed.

    What the evidence alone does not ask for (`history` empty) is asked for with no history.
    """
    now = calibration.window_until
    age = now - calibration.trained_until if calibration.trained_until else None
    if calibration.verdict == "drift":
        cause = f"drift: {calibration.reason}"
    elif age is not None and age > policy.max_model_age:
        cause = f"age: the model knows nothing of the last {age.days} days, {policy.max_model_age.days} are allowed"
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
