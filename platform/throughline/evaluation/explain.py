"""Explanations of a score: Shapley values (SHAP) of the features, in probability, for any served model.

A feature's contribution is the mean change of the score when the row's own value replaces the background's, over orders
in which the features of a background row are replaced by the row's. Contributions and base value, the background's mean
score, sum to the score. Missing is a value like any other; a category is one feature. Every background row is left on
equally many paths, each walked in both directions, so the sum is exact and a repetition gives the same numbers. Pure
but for the clock of a deadline.

Why not one of shap's explainers: for as many model evaluations its error is 1.7 to 2 times this (KernelExplainer: 14
times), and the first of a process takes 19 s of a core and 350 MB (docs/explanations.md).

Owns: the estimate, for one row and over many. Does not own: which rows are the background (`background.py`), drawing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.references import ModelReference
from throughline.records import GlobalImportance

SEED = 2013
PAIRS = 2  # paths per background row, each walked in both directions
GLOBAL_ROWS, GLOBAL_AGAINST, GLOBAL_PAIRS = 100, 20, 1  # rows explained, and background rows that are enough for a mean
AT_ONCE = 10  # rows that one request to the model server may have
CHUNK = 4096  # model evaluations between two looks at the clock


class Model(Protocol):
    """The part of `throughline.models.served_model.ServedModel` that is used here."""

    numeric: list[str]
    categorical: list[str]

    def score(self, features: pl.DataFrame) -> np.ndarray: ...


class TooSlow(ThroughlineError):
    """The deadline came first."""


@dataclass(frozen=True)
class Contribution:
    """What one feature adds to the score; `value` is None where it is missing."""

    feature: str
    value: float | str | None
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """`base_value` plus all contributions is `score`; the largest comes first."""

    score: float
    base_value: float
    explanations: list[Contribution]


def explain(
    model: Model, row: pl.DataFrame, background: pl.DataFrame, *, pairs: int = PAIRS, until: float | None = None
) -> Explanation:
    """Explain the score of a frame of one row against a background [rows], both with the model's features.

    Scores 1 + B + 2 * pairs * B * (features - 1) rows for B rows of background. `until`: on `time.monotonic`; raises
    `TooSlow` when that passes.
    """
    features = [*model.numeric, *model.categorical]
    score = float(model.score(row)[0])
    base = model.score(background)
    values = _typed(model, row)
    contributions = _contributions(
        model, features, pl.concat([_typed(model, background), values]), score, base, pairs, until
    )
    found = [
        Contribution(name, values[name].item(), float(one)) for name, one in zip(features, contributions, strict=True)
    ]
    return Explanation(score, float(base.mean()), sorted(found, key=lambda one: -abs(one.contribution)))


def global_importance(
    model: Model, reference: ModelReference, rows: pl.DataFrame, background: pl.DataFrame
) -> GlobalImportance:
    """Mean absolute contribution of each feature over rows drawn from `rows`."""
    drawn, against = sample(rows, GLOBAL_ROWS), sample(background, GLOBAL_AGAINST)
    total: dict[str, float] = dict.fromkeys([*model.numeric, *model.categorical], 0.0)
    for number in range(drawn.height):
        for one in explain(model, drawn[number], against, pairs=GLOBAL_PAIRS).explanations:
            total[one.feature] += abs(one.contribution) / drawn.height
    return GlobalImportance(
        model=reference,
        rows=drawn.height,
        base_value=float(model.score(against).mean()),
        features=dict(sorted(total.items(), key=lambda item: -item[1])),
    )


def sample(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """At most `count` of the rows, in their order; the same rows give the same."""
    drawn = np.random.default_rng(SEED).permutation(rows.height)[:count]
    return rows[np.sort(drawn)]


def _typed(model: Model, rows: pl.DataFrame) -> pl.DataFrame:
    """The model's features, missing as null, of types that frames of any origin share."""
    return rows.select(
        *(pl.col(name).cast(pl.Float64).fill_nan(None) for name in model.numeric),
        *(pl.col(name).cast(pl.String).replace("", None) for name in model.categorical),
    )


def _contributions(
    model: Model,
    features: list[str],
    rows: pl.DataFrame,
    score: float,
    base: np.ndarray,
    pairs: int,
    until: float | None,
) -> np.ndarray:
    """float64 [features]. `rows`: the background, whose scores are `base` [rows], and below it the row explained."""
    count, own = len(features), len(base)
    forward = np.random.default_rng(SEED).permuted(np.tile(np.arange(count), (pairs * own, 1)), axis=1)
    order = np.concatenate([forward, forward[:, ::-1]])  # [paths, features]: which feature is replaced at which step
    begin = np.tile(np.arange(own), 2 * pairs)  # [paths]: at which background row
    turn = np.argsort(order, axis=1)
    between = np.empty((len(order), count - 1))
    for part in _parts(len(order), max(1, CHUNK // count), until):
        # [paths of the part, features - 1]: the row that each feature is taken from after 1, 2, ... replacements
        taken = (
            np.where(turn[part, place, None] < np.arange(1, count), own, begin[part, None]) for place in range(count)
        )
        mixed = pl.DataFrame([rows[name].gather(of.ravel()) for name, of in zip(features, taken, strict=True)])
        between[part] = model.score(mixed).reshape(between[part].shape)
    walked = np.column_stack([base[begin], between, np.full(len(order), score)])
    return np.bincount(order.ravel(), np.diff(walked, axis=1).ravel(), count) / len(order)


def _parts(count: int, size: int, until: float | None) -> Iterator[slice]:
    for number in range(math.ceil(count / size)):
        if until is not None and time.monotonic() > until:
            raise TooSlow("The explanation was not done in time: try again when the server has less load.")
        yield slice(number * size, (number + 1) * size)
