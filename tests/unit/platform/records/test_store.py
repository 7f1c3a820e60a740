"""A record is read as it was written, or refused in one line; a reader never sees half of one."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import TableReference
from throughline.foundation.settings import Settings
from throughline.records import (
    CalibrationRecord,
    EvaluationRecord,
    GateDecision,
    InferenceLogRecord,
    Metrics,
    RuleVerdict,
)
from throughline.records.store import find_record, load_record, save_record

NOW = datetime(2013, 4, 1, 4, tzinfo=UTC)
KEY = ("usecase", "room", "asset")
LOG = InferenceLogRecord(table=TableReference("u/monitoring/log", 3), received=2, written=2, lost=0)


@pytest.fixture
def home(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def test_a_record_is_read_as_it_was_written(home: Settings) -> None:
    save_record(home, KEY, LOG)
    assert load_record(home, KEY, InferenceLogRecord) == LOG
    save_record(home, KEY, LOG.model_copy(update={"received": 4}))
    assert load_record(home, KEY, InferenceLogRecord).received == 4
    assert [path.name for path in (home.records / "usecase" / "room").iterdir()] == ["asset.json"]


def test_nan_and_infinity_are_read_as_they_were_written(home: Settings) -> None:
    unknown = Metrics(rows=0, log_loss=math.nan, auc=math.nan, brier=math.inf, ece=0.1)
    record = EvaluationRecord(
        model="m/1", sha256="a", dataset_fingerprint="f", evaluated_at=NOW, holdout_from=NOW, holdout_until=NOW,
        candidate=unknown, constant=unknown, champion=None, champion_model=None,
    )  # fmt: skip
    save_record(home, KEY, record)
    again = load_record(home, KEY, EvaluationRecord)
    assert math.isnan(again.candidate.auc)
    assert math.isinf(again.candidate.brier)
    assert again.holdout_from == NOW
    rule = RuleVerdict(rule="auc", verdict="cannot_say", value=math.nan, bound="at least 0.72")
    save_record(home, KEY, GateDecision(model="m/1", sha256="a", decision="reject", decided_at=NOW, rules=[rule]))
    decision = load_record(home, KEY, GateDecision)
    assert math.isnan(decision.rules[0].value)
    assert "auc" in decision.reasons
    assert "nan" not in decision.reasons


def test_a_missing_record_is_none_or_one_line(home: Settings) -> None:
    assert find_record(home, KEY, InferenceLogRecord) is None
    with pytest.raises(ThroughlineError, match=r"No record of usecase/room/asset .*materialise it first"):
        load_record(home, KEY, InferenceLogRecord)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"table": "t@x"}', '{"table": null, "received": 1, "written": 1, "lost": 0, "more": 2}']
)
def test_a_file_that_is_no_such_record_is_one_line_with_its_path(home: Settings, content: str) -> None:
    save_record(home, KEY, LOG)
    (home.records / "usecase" / "room" / "asset.json").write_text(content)
    with pytest.raises(ThroughlineError, match=r"asset\.json is not a InferenceLogRecord") as caught:
        find_record(home, KEY, InferenceLogRecord)
    assert "\n" not in str(caught.value)


def test_a_record_of_another_kind_is_refused(home: Settings) -> None:
    save_record(home, KEY, LOG)
    with pytest.raises(ThroughlineError, match="is not a CalibrationRecord"):
        load_record(home, KEY, CalibrationRecord)


def test_a_write_that_breaks_off_leaves_the_old_record(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    save_record(home, KEY, LOG)
    write = Path.write_bytes

    def half(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="no space"):
            save_record(home, KEY, LOG.model_copy(update={"received": 4}))
    assert load_record(home, KEY, InferenceLogRecord) == LOG


def test_the_gap_of_a_calibration_is_mean_score_minus_outcome_rate() -> None:
    judged = CalibrationRecord(
        model="m/1", window_from=NOW, window_until=NOW, outcomes=1, mean_score=0.25, outcome_rate=0.5,
        verdict="drift", reason="r",
    )  # fmt: skip
    assert judged.gap == -0.25
    assert judged.model_copy(update={"mean_score": None}).gap is None
