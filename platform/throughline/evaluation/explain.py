"""Why a score is what it is: Shapley values (SHAP) of the features, in probability, for whatever model is served.

A feature's contribution is what putting in the row's own value changes, on average over the orders in which the
features of a background row can be replaced by those of the row. Contributions and base value, the background's mean
score, sum to the score. Missing is a value like any other; a category is one feature. Every background row is left on
as many paths as every other, each path and its reverse, so the sum holds exactly and the same call gives the same
numbers. Pure but for the clock that a deadline is read from.

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
AT_ONCE = 10  # rows that one request to the model server may ask about
CHUNK = 4096  # model evaluations between two looks at the clock


class Model(Protocol):
    """What is asked of `throughline.models.served_model.ServedModel`."""

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

    Scores `evaluations(...)` rows. `until`: on `time.monotonic`; raises `TooSlow` when that passes.
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


def evaluations(features: int, background_rows: int, pairs: int = PAIRS) -> int:
    """How many rows the model scores for one explanation."""
    return 1 + background_rows + 2 * pairs * background_rows * (features - 1)


def global_importance(
    model: Model,
    reference: ModelReference,
    rows: pl.DataFrame,
    background: pl.DataFrame,
    rows_at_most: int = GLOBAL_ROWS,
) -> GlobalImportance:
    """Mean absolute contribution of each feature over rows drawn from `rows`"""
    drawn, against = sample(rows, rows_at_most), sample(background, GLOBAL_AGAINST)
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


def sample(rows: pl.DataFrame, count: int, seed: int = SEED) -> pl.DataFrame:
    """At most `count` of the rows, in their order; the same seed and rows give the same."""
    drawn = np.random.default_rng(seed).permutation(rows.height)[:count]
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
    forth = np.random.default_rng(SEED).permuted(np.tile(np.arange(count), (pairs * own, 1)), axis=1)
    order = np.concatenate([forth, forth[:, ::-1]])  # [paths, features]: which feature is replaced at which step
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
            raise TooSlow("The explanation was not done in time: try again when less is going on.")
        yield slice(number * size, (number + 1) * size)
