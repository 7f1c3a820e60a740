"""The decision to release. Pure, and closed unless every rule passes.

Owns: the rules and their verdicts. Does not own: numbers (`evaluate.py`), bounds (the declaration), what a release
does (`rollout/`), which refuses any decision but "release" for the very version and digest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from throughline.foundation.references import ModelReference
from throughline.records import EvaluationRecord, GateDecision, Metrics, ModelRecord, RuleVerdict
from throughline.registry.approval import RULE as APPROVAL
from throughline.usecase import Bound, GateRule

MAX_AGE = timedelta(days=1)
NO_CHAMPION = "no champion yet"


def decide(
    evaluation: EvaluationRecord | None,
    model: ModelRecord,
    bounds: Mapping[GateRule, Bound],
    now: datetime,
    current_champion: ModelReference | None,
    further: Sequence[RuleVerdict] = (),
) -> GateDecision:
    """Release `model` only when its own, fresh evaluation satisfies every bound.

    `now` is of the same clock as `evaluation.evaluated_at`; `evaluation` None: it is missing. `current_champion` must
    be the version that the evaluation compared with, or `model` itself. `further`: verdicts on what is no number; when
    nothing but an approval is missing, the decision is `wait`.
    """
    rules = [_own_and_fresh(evaluation, model, current_champion, now)]
    if not bounds:
        rules.append(RuleVerdict(rule="rules", verdict="fail", value=None, bound="the declaration has no gate rules"))
    rules += [_verdict(name, bound, evaluation) for name, bound in sorted(bounds.items())]
    rules += further
    unmet = [rule for rule in rules if rule.verdict != "pass"]
    lacks_approval = all(rule.rule == APPROVAL and rule.verdict == "cannot_say" for rule in unmet)
    return GateDecision(
        model=model.reference,
        sha256=model.sha256,
        decision="release" if not unmet else "wait" if lacks_approval else "reject",
        decided_at=now,
        rules=rules,
        compared_with=evaluation.champion_model if evaluation else None,
    )


def former_champion(model: ModelRecord) -> RuleVerdict:
    """Of a version that was replaced as champion or rolled back from: only people bring it back."""
    reason = f"it was champion before; `throughline promote {model.reference}` brings it back"
    return RuleVerdict(rule="former_champion", verdict="fail", value=None, bound=reason)


def _own_and_fresh(
    evaluation: EvaluationRecord | None, model: ModelRecord, champion: ModelReference | None, now: datetime
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
    if champion not in (evaluation.champion_model, model.reference):
        compared = evaluation.champion_model or "no champion"
        return verdict("fail", f"compared with {compared}, the champion now is {champion or 'none'}")
    if evaluation.champion_trained_until is not None and evaluation.champion is None:
        return verdict("cannot_say", evaluation.comparison)
    if model.trained_until >= evaluation.holdout_from:
        return verdict("fail", f"trained until {model.trained_until.isoformat()}, into the held-out rows")
    if not timedelta(0) <= now - evaluation.evaluated_at <= MAX_AGE:
        return verdict("fail", f"evaluated at {evaluation.evaluated_at.isoformat()}: stale, evaluate again")
    return verdict("pass", "its own file and dataset, fresh")


def _verdict(name: GateRule, bound: Bound, evaluation: EvaluationRecord | None) -> RuleVerdict:
    text = _words(bound)
    if evaluation is None:
        return RuleVerdict(rule=name, verdict="cannot_say", value=None, bound=text)
    if name in OVER_CHAMPION and evaluation.champion is None and evaluation.champion_model is None:
        return RuleVerdict(rule=name, verdict="pass", value=None, bound=NO_CHAMPION)
    value, where = RULES[name](evaluation) if name in RULES else (None, "this rule is unknown")
    if value is None or not math.isfinite(value):
        return RuleVerdict(rule=name, verdict="cannot_say", value=value, bound=text, where=where)
    if text == "":
        return RuleVerdict(rule=name, verdict="cannot_say", value=value, bound="the rule has no bound")
    verdict = "pass" if _within(value, bound) else "fail"
    return RuleVerdict(rule=name, verdict=verdict, value=value, bound=text, where=where)


# A number and, where it is one of several, which it was. None: it cannot be computed.
Number = tuple[float | None, str]


def _under(other: Metrics | None, evaluation: EvaluationRecord) -> Number:
    return (None if other is None else other.log_loss - evaluation.candidate.log_loss), ""


def _over_champion(evaluation: EvaluationRecord) -> Number:
    """On the same rows, of which neither learned from any."""
    mine, theirs = evaluation.beside_champion or evaluation.candidate, evaluation.champion
    if theirs is None or mine.rows != theirs.rows:
        return None, evaluation.comparison or "candidate and champion were not judged on the same rows"
    return mine.log_loss - theirs.log_loss, evaluation.comparison


def _generalisation_gap(evaluation: EvaluationRecord) -> Number:
    """The gain over the constant on rows that it could be trained on, minus the gain on the held-out rows.

    Not the difference of the losses: where the base rate moves, the loss of every model does.
    """
    rate, trained = evaluation.base_rate, evaluation.training
    if trained is None or not 0 < rate < 1:
        return None, ""
    entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
    gained = entropy - trained.log_loss
    return gained - (evaluation.constant.log_loss - evaluation.candidate.log_loss), ""


def _extreme(worst: Callable[[list[Number]], Number], found: Iterable[Number]) -> Number:
    """The worst of several; no number when there is none or any of them cannot be computed."""
    found = list(found)
    if blind := [one for one in found if one[0] is None or not math.isfinite(one[0])]:
        return None, blind[0][1]
    return worst(found) if found else (None, "none was judged")


def _worst_slice_over_champion(evaluation: EvaluationRecord) -> Number:
    """The lower end of a slice's interval over the champion: of many slices some are worse by chance every time.

    A slice of too few days has no interval and is left out; when all are, the verdict is `cannot_say`.
    """
    sure = [(one.over_champion_interval.low, str(one)) for one in evaluation.slices if one.over_champion_interval]
    return _extreme(max, sure)


def _disparity(kind: str, evaluation: EvaluationRecord) -> Number:
    return _extreme(max, ((by[kind], column) for column, by in evaluation.disparity.items()))


RULES: dict[GateRule, Callable[[EvaluationRecord], Number]] = {
    "auc": lambda e: (e.candidate.auc, ""),
    "ece": lambda e: (e.candidate.ece, ""),
    "log_loss_under_constant": lambda e: _under(e.constant, e),
    "log_loss_under_simple_rule": lambda e: _under(e.simple_rule, e),
    "log_loss_over_champion": _over_champion,
    "generalisation_gap": _generalisation_gap,
    "slice_log_loss_under_constant": lambda e: _extreme(
        min, ((one.log_loss_under_constant, str(one)) for one in e.slices)
    ),
    "slice_log_loss_over_champion": _worst_slice_over_champion,
    "disparity_calibration": lambda e: _disparity("calibration", e),
    "disparity_opportunity": lambda e: _disparity("opportunity", e),
    "broken_behaviour": lambda e: _extreme(max, ((one.broken, one.name) for one in e.behaviour)),
    "missing_source": lambda e: _extreme(max, ((rise, view) for view, rise in e.missing.items())),
    "outside_domain": lambda e: (e.outside_domain, ""),
    "latency_p95_ms": lambda e: (e.cost.latency_p95_ms if e.cost else None, ""),
    "size_mb": lambda e: (e.cost.size_bytes / 1e6 if e.cost else None, ""),
}
OVER_CHAMPION = {"log_loss_over_champion", "slice_log_loss_over_champion"}


def _within(value: float, bound: Bound) -> bool:
    return (
        (bound.at_least is None or value >= bound.at_least)
        and (bound.at_most is None or value <= bound.at_most)
        and (bound.below is None or value < bound.below)
    )


def _words(bound: Bound) -> str:
    stated = {"at least": bound.at_least, "at most": bound.at_most, "below": bound.below}
    return ", ".join(f"{word} {limit:g}" for word, limit in stated.items() if limit is not None)
