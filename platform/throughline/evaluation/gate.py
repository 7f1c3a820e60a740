"""The decision to release. Pure, and closed unless every rule says yes.

Owns: the rules and their verdicts. Does not own: numbers (`evaluate.py`), bounds (the declaration), what a release
does (`rollout/`), which refuses any decision but "release" for the very version and digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal

from throughline.records import EvaluationRecord, GateDecision, ModelRecord, RuleVerdict
from throughline.usecase import Bound

MAX_AGE = timedelta(days=1)
NO_CHAMPION = "no champion yet"


def decide(
    evaluation: EvaluationRecord | None,
    model: ModelRecord,
    bounds: Mapping[str, Bound],
    now: datetime,
    *,
    current_champion: ModelRecord | Literal["none", "not asked"] = "not asked",
    max_age: timedelta = MAX_AGE,
) -> GateDecision:
    """Release `model` only when its own, fresh evaluation satisfies every bound.

    `now` is of the same clock as `evaluation.evaluated_at`; `evaluation` None: it is missing. `current_champion`, when
    given, must be whom the evaluation compared with: a comparison with somebody else says nothing.
    """
    rules = [_own_and_fresh(evaluation, model, current_champion, now, max_age)]
    if not bounds:
        rules.append(RuleVerdict(rule="rules", verdict="fail", value=None, bound="the declaration has no gate rules"))
    rules += [_verdict(name, bound, evaluation) for name, bound in sorted(bounds.items())]
    return GateDecision(
        model=model.reference,
        sha256=model.sha256,
        decision="release" if all(rule.verdict == "pass" for rule in rules) else "reject",
        decided_at=now,
        rules=rules,
    )


def _own_and_fresh(
    evaluation: EvaluationRecord | None,
    model: ModelRecord,
    champion: ModelRecord | str,
    now: datetime,
    max_age: timedelta,
) -> RuleVerdict:
    def verdict(word: Literal["pass", "fail", "cannot_say"], bound: str) -> RuleVerdict:
        return RuleVerdict(rule="evaluation", verdict=word, value=None, bound=bound)

    if evaluation is None:
        return verdict("cannot_say", f"there is no evaluation of {model.reference}")
    if evaluation.model != model.reference:
        return verdict("fail", f"the evaluation is of {evaluation.model}, not of {model.reference}")
    if evaluation.sha256 != model.sha256:
        return verdict("fail", "the evaluation is of another file than the one registered")
    if evaluation.dataset_fingerprint != model.dataset_fingerprint:
        return verdict("fail", "the evaluation is on another dataset than the model's own")
    champion_now = champion.reference if isinstance(champion, ModelRecord) else champion
    if champion_now not in ("not asked", evaluation.champion_model or "none"):
        return verdict("fail", f"compared with champion {evaluation.champion_model}, but it is {champion_now} now")
    if model.trained_until >= evaluation.holdout_from:
        return verdict("fail", f"trained until {model.trained_until.isoformat()}, into the held-out rows")
    if not timedelta(0) <= now - evaluation.evaluated_at <= max_age:
        return verdict("fail", f"evaluated at {evaluation.evaluated_at.isoformat()}: stale, evaluate again")
    return verdict("pass", "its own file and dataset, fresh")


def _verdict(name: str, bound: Bound, evaluation: EvaluationRecord | None) -> RuleVerdict:
    text = _words(bound)
    if evaluation is None:
        return RuleVerdict(rule=name, verdict="cannot_say", value=None, bound=text)
    if name == "log_loss_over_champion" and evaluation.champion is None and evaluation.champion_model is None:
        return RuleVerdict(rule=name, verdict="pass", value=None, bound=NO_CHAMPION)
    value = _value(name, evaluation)
    if value is None or not math.isfinite(value):
        return RuleVerdict(rule=name, verdict="cannot_say", value=value, bound=text)
    if text == "":
        return RuleVerdict(rule=name, verdict="cannot_say", value=value, bound="the rule has no bound")
    return RuleVerdict(rule=name, verdict="pass" if _within(value, bound) else "fail", value=value, bound=text)


def _value(name: str, evaluation: EvaluationRecord) -> float | None:
    """The number a rule is about; None for a rule nobody knows."""
    candidate = evaluation.candidate
    if name == "auc":
        return candidate.auc
    if name == "ece":
        return candidate.ece
    if name == "log_loss_under_constant":
        return evaluation.constant.log_loss - candidate.log_loss
    if name == "log_loss_over_champion" and evaluation.champion is not None:
        return candidate.log_loss - evaluation.champion.log_loss
    return None


def _within(value: float, bound: Bound) -> bool:
    return (
        (bound.at_least is None or value >= bound.at_least)
        and (bound.at_most is None or value <= bound.at_most)
        and (bound.below is None or value < bound.below)
    )


def _words(bound: Bound) -> str:
    stated = {"at least": bound.at_least, "at most": bound.at_most, "below": bound.below}
    return ", ".join(f"{word} {limit:g}" for word, limit in stated.items() if limit is not None)
