"""What was predicted, what became of it, and how well the two agree."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from throughline.foundation.references import ModelReference, TableReference
from throughline.records.base import Record


class InferenceLogRecord(Record):
    """The inference log as it stood: its version (None before the first event), that of the reported outcomes (None
    before the first), and what the collector counted."""

    table: TableReference | None
    feedback: TableReference | None = None
    received: int
    written: int
    lost: int


class OutcomesRecord(Record):
    """Predictions joined with what became of them, up to `as_of`.

    Of the labelled ones, `from_feedback` have a reported outcome only; in `conflicts` it differs from the label.
    Reports without their prediction wait for it, or expired.
    """

    table: TableReference
    as_of: datetime
    predictions: int
    labelled: int
    pending: int
    never_labelled: int
    log_complete: bool
    from_feedback: int = 0
    conflicts: int = 0
    feedback_waiting: int = 0
    feedback_expired: int = 0


class CalibrationRecord(Record):
    """Mean score against outcome rate of the serving model version, over a window on the data clock. `run_id`: of the
    run that judged, None outside of one."""

    model: ModelReference | None
    window_from: datetime
    window_until: datetime
    outcomes: int
    mean_score: float | None
    outcome_rate: float | None
    verdict: Literal["ok", "drift", "cannot_say"]
    reason: str
    run_id: str | None = None
    trained_until: datetime | None = None

    @property
    def gap(self) -> float | None:
        """Mean score minus outcome rate; positive: the model warns too often."""
        if self.mean_score is None or self.outcome_rate is None:
            return None
        return self.mean_score - self.outcome_rate
