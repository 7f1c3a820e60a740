"""A candidate on the rows held out by time, beside constant, simple rule and champion.

Owns: which rows, against what; `evaluate` is pure but for the clock that times a prediction, `evaluate_candidate` reads
and records around it. Does not own: metrics (`metrics.py`), slices (`slices.py`), changed inputs (`behaviour.py`), the
report (`report.py`), the decision (`gate.py`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import polars as pl

from throughline.evaluation import background, behaviour
from throughline.evaluation.baseline import SimpleRule
from throughline.evaluation.bootstrap import Draws, interval
from throughline.evaluation.explain import global_importance
from throughline.evaluation.slices import LOCAL, disparity, judge_slice, local_columns, slices_of
from throughline.foundation.clock import WallClock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import scan
from throughline.models.metrics import metrics_of, reliability
from throughline.models.served_model import ServedModel
from throughline.records import SCORE_BINS, DatasetRecord, EvaluationRecord, Interval, ModelRecord, ServingCost
from throughline.registry import versions as models
from throughline.usecase import UseCase
from throughline.usecase.evaluation import SimpleRuleOf

TRAINING_ROWS = 20_000  # of the rows trained on, for the gap to the held-out ones
BEHAVIOUR_ROWS = 5_000
TIMED = 200


@dataclass(frozen=True)
class Rows:
    """Of one dataset: what was held out, and a part of what could be trained on, in the order of time."""

    holdout: pl.DataFrame
    before: pl.DataFrame
    base_rate: float  # of all rows before; NaN when there are none


def evaluate_candidate(
    settings: Settings, usecase: UseCase, dataset: DatasetRecord, model: ModelRecord
) -> EvaluationRecord:
    """Evaluate `model` on the dataset's held-out rows, and log the background of its explanations with its run.

    `evaluated_at` is the wall clock's: the gate refuses an evaluation by its age, not by the age of its rows.
    """
    champion = models.champion(settings, usecase.name)
    rows = read_rows(dataset)
    loaded = models.load(settings, model)
    incumbent = None if champion is None else (models.load(settings, champion), champion)
    record = evaluate(usecase, loaded, model, rows, dataset, WallClock().now(), incumbent)
    drawn = background.background_of(loaded, rows.holdout)
    background.log(settings, model, drawn)
    against = background.frame_of(drawn, loaded, model.sha256)
    importance = global_importance(loaded, model.reference, rows.holdout, against)
    return record.model_copy(update={"importance": importance})


def read_rows(dataset: DatasetRecord) -> Rows:
    """The held-out rows, and of those that could have been trained on the rate and at most `TRAINING_ROWS`."""
    frame = scan(dataset.path, dataset.table.version).sort("prediction_time", "row_key").collect()
    held_out = pl.col("prediction_time") >= dataset.holdout_from
    before = frame.filter(~held_out & (pl.col("label_available_at") < dataset.holdout_from))
    return Rows(
        holdout=frame.filter(held_out),
        before=before.gather_every(max(1, math.ceil(before.height / TRAINING_ROWS))),
        base_rate=float(before["label"].to_numpy().mean()) if before.height else math.nan,
    )


def evaluate(
    usecase: UseCase,
    model: ServedModel,
    record: ModelRecord,
    rows: Rows,
    dataset: DatasetRecord,
    now: datetime,
    champion: tuple[ServedModel, ModelRecord] | None = None,
) -> EvaluationRecord:
    """Score the held-out rows that the candidate learned nothing from; constant and rule learn from earlier rows only.

    The champion is compared on rows after all that it learned from, or not at all when too few days of them are left.
    One that cannot score the rows (other features) has NaN metrics. The gate cannot pass on either. Raises when no row
    is left for the candidate.
    """
    holdout = rows.holdout.filter(pl.col("prediction_time") > record.trained_until)
    rows = replace(rows, holdout=holdout)
    if holdout.is_empty():
        raise ThroughlineError(
            f"Dataset {dataset.table} has no row at or after {dataset.holdout_from.isoformat()} that "
            f"{record.reference} did not learn from: nothing was held out; build the dataset with a later as-of."
        )
    require_columns(usecase, dataset)
    labels = labels_of(holdout)
    scores = {"candidate": model.score(holdout), "constant": np.full(len(labels), rows.base_rate)}
    days = holdout["prediction_time"].dt.convert_time_zone(usecase.timezone).dt.date().to_numpy()
    draws = Draws.of(days)
    everywhere = np.full(len(labels), fill_value=True)
    compared, seen_until = everywhere, None
    if champion is not None:
        compared = (holdout["prediction_time"] > champion[1].trained_until).to_numpy()
        seen_until = None if compared.all() else champion[1].trained_until
        if seen_until is None or draws.among(compared).enough:
            scores["champion"] = _champion_scores(champion[0], holdout, compared)
    if usecase.evaluation.simple_rule is not None:
        scores["simple_rule"] = _simple_rule_scores(usecase.evaluation.simple_rule, rows)
    judged_on = {**dict.fromkeys(scores, everywhere), "champion": compared}
    metrics = {name: metrics_of(given[judged_on[name]], labels[judged_on[name]]) for name, given in scores.items()}
    sound = {name: given for name, given in scores.items() if math.isfinite(metrics[name].log_loss)}
    declared, threshold = usecase.evaluation.slices, usecase.prediction.decision.threshold
    judged = []
    if "candidate" in sound:
        cut = holdout.with_columns(**local_columns(holdout, usecase.timezone))
        judged = [
            judge_slice(one, sound["candidate"], labels, rows.base_rate, sound.get("champion"), threshold, draws)
            for one in slices_of(cut, declared.columns, declared.minimum_rows)
        ]
    thinned = holdout.gather_every(max(1, math.ceil(holdout.height / BEHAVIOUR_ROWS)))
    groups = {view: [name for name in names if name in model.numeric] for view, names in dataset.views.items()}
    groups = {view: names for view, names in groups.items() if names}
    return EvaluationRecord(
        model=record.reference,
        sha256=model.sha256,
        dataset_fingerprint=dataset.fingerprint,
        evaluated_at=now,
        holdout_from=dataset.holdout_from,
        holdout_until=holdout["prediction_time"].sort()[-1],
        days=len(np.unique(days)),
        base_rate=rows.base_rate,
        candidate=metrics["candidate"],
        constant=metrics["constant"],
        simple_rule=metrics.get("simple_rule"),
        champion=metrics.get("champion"),
        champion_model=None if champion is None else champion[1].reference,
        champion_trained_until=seen_until,
        beside_champion=metrics_of(scores["candidate"][compared], labels[compared]) if "champion" in scores else None,
        intervals=_intervals(sound, labels, draws, compared),
        reliability={
            name: reliability(sound[name][judged_on[name]], labels[judged_on[name]])
            for name in ("candidate", "champion")
            if name in sound
        },
        score_counts={
            name: np.histogram(sound[name][compared], SCORE_BINS, (0.0, 1.0))[0].tolist()
            for name in ("candidate", "champion")
            if name in sound
        },
        training=metrics_of(model.score(rows.before), labels_of(rows.before)),
        slices=judged,
        disparity={column: disparity(judged, column) for column in declared.protected},
        behaviour=[
            behaviour.check(model.score, thinned, name, expected)
            for name, expected in usecase.evaluation.behaviour.items()
        ],
        missing=behaviour.without(model.score, thinned, labels_of(thinned), groups),
        outside_domain=float(np.mean([bool(names) for names in model.outside_domain(holdout)])),
        cost=_cost(model, holdout),
    )


def require_columns(usecase: UseCase, dataset: DatasetRecord) -> None:
    """Raises one line when the declared evaluation needs columns that the dataset lacks. Call it before training."""
    declared = usecase.evaluation
    wanted = {*declared.slices.columns, *(expected.feature for expected in declared.behaviour.values())}
    if declared.simple_rule is not None:
        wanted.add(declared.simple_rule.feature)
    if unknown := sorted(wanted - {*dataset.numeric, *dataset.categorical, *LOCAL}):
        problem = f"names {', '.join(unknown)}, which dataset {dataset.table} does not have"
        remedy = "correct the declaration, or take a dataset of its features"
        raise ThroughlineError(f"evaluation of {usecase.name} {problem}: {remedy}.")


def labels_of(rows: pl.DataFrame) -> np.ndarray:
    """float64 [rows]; NaN where there is none."""
    return rows["label"].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _champion_scores(model: ServedModel, holdout: pl.DataFrame, compared: np.ndarray) -> np.ndarray:
    """float64 [rows]; NaN where it is not compared, and on all rows when it cannot score them."""
    scores = np.full(holdout.height, np.nan)
    with contextlib.suppress(ThroughlineError):
        scores[compared] = model.score(holdout.filter(compared))
    return scores


def _simple_rule_scores(declared: SimpleRuleOf, rows: Rows) -> np.ndarray:
    values = [frame[declared.feature].cast(pl.Float64).fill_null(float("nan")) for frame in (rows.before, rows.holdout)]
    rule = SimpleRule.learn(values[0].to_numpy(), labels_of(rows.before), declared.bins)
    return rule.score(values[1].to_numpy())


def _intervals(
    scores: Mapping[str, np.ndarray], labels: np.ndarray, draws: Draws, compared: np.ndarray
) -> dict[str, dict[str, Interval]]:
    """`compared` bool [rows]: where the champion is compared."""
    if not draws.enough:
        return {}
    drawn = {name: draws.metrics(given, labels) for name, given in scores.items() if name != "champion"}
    if "champion" in scores:
        shared = draws.among(compared)
        drawn["champion"] = champion = shared.metrics(scores["champion"][compared], labels[compared])
        if "candidate" in scores:
            candidate = shared.metrics(scores["candidate"][compared], labels[compared])
            drawn["over_champion"] = {metric: candidate[metric] - champion[metric] for metric in candidate}
    found = {name: {metric: interval(values) for metric, values in by.items()} for name, by in drawn.items()}
    return {name: {metric: one for metric, one in by.items() if one is not None} for name, by in found.items()}


def _cost(model: ServedModel, holdout: pl.DataFrame) -> ServingCost:
    times = []
    for number in range(TIMED):
        row = holdout[number % holdout.height]
        begun = time.perf_counter()
        model.score(row)
        times.append(time.perf_counter() - begun)
    p50, p95 = (float(value) * 1000 for value in np.quantile(times, [0.5, 0.95]))
    return ServingCost(latency_p50_ms=p50, latency_p95_ms=p95, size_bytes=model.size_bytes)
