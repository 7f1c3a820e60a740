"""Whether the newest days are distributed as those of the training dataset; pure, from statistics instead of rows.

Owns: the distance and the verdict, which never refuses a day. Does not own: which days are compared (`ingestion/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from throughline.usecase import Drift
from throughline.validation.statistics import PROBABILITIES

BINS = 10


@dataclass(frozen=True)
class DriftVerdict:
    """`psi` per column that could be compared, largest first; `cannot_say` when none could."""

    result: Literal["pass", "warn", "cannot_say"]
    detail: str
    psi: dict[str, float]


def judge_drift(reference: pl.DataFrame, newest: pl.DataFrame, policy: Drift) -> DriftVerdict:
    """Compare day statistics (`statistics.SCHEMA`) of the reference days with those of the newest ones."""
    psi, short = {}, []
    for column in policy.columns:
        sides = [days.filter(pl.col("column") == column) for days in (reference, newest)]
        rows = [int(side["rows"].sum()) for side in sides]
        if min(rows) < policy.minimum_rows:
            short.append(f"{column}: {rows[1]} rows against {rows[0]}")
        else:
            psi[column] = stability_index(*_binned(*sides))
    psi = dict(sorted(psi.items(), key=lambda item: -item[1]))
    if not psi:
        return DriftVerdict("cannot_say", f"{policy.minimum_rows} rows are needed ({'; '.join(short)})", {})
    far = [f"{column} {value:.2f}" for column, value in psi.items() if value > policy.psi]
    if far:
        return DriftVerdict("warn", f"population stability index above {policy.psi}: {', '.join(far)}", psi)
    column, value = next(iter(psi.items()))
    return DriftVerdict("pass", f"largest population stability index {value:.2f} ({column}), {policy.psi} allowed", psi)


def stability_index(reference: np.ndarray, newest: np.ndarray) -> float:
    """Population stability index of two vectors of counts over the same bins: sum of (p - q) ln(p / q).

    Siddiqi, Credit Risk Scorecards (2006), with its marks at 0.1 and 0.25. Half a row is added to every bin, so that an
    empty one gives a finite index.
    """
    p, q = reference + 0.5, newest + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def _binned(reference: pl.DataFrame, newest: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows per bin on both sides: categories, or tenths of the reference's rows; nulls are a bin of their own."""
    sides = (reference, newest)
    nulls = [int(side["nulls"].sum()) for side in sides]
    if reference["quantiles"].null_count() == reference.height:
        counted = [_categories(side) for side in sides]
        names = dict.fromkeys([*counted[0], *counted[1]])
        rows = [np.array([counts.get(name, 0) for name in names], float) for counts in counted]
    else:
        points = [_points(side) for side in sides]
        values, weights = points[0]
        order = np.argsort(values)
        share = np.cumsum(weights[order]) / weights.sum()
        edges = np.unique(values[order][np.searchsorted(share, np.arange(1, BINS) / BINS)])
        rows = [
            np.bincount(np.searchsorted(edges, values), weights, minlength=len(edges) + 1) for values, weights in points
        ]
    return np.append(rows[0], nulls[0]), np.append(rows[1], nulls[1])


def _categories(side: pl.DataFrame) -> dict[str | None, int]:
    """Rows per category over all days; those that were not listed are under None."""
    listed = side.select("categories").explode("categories").drop_nulls().unnest("categories")
    counts: dict[str | None, int] = dict(listed.group_by("value").agg(pl.col("count").sum()).rows())
    return {**counts, None: int(side["count"].sum()) - int(listed["count"].sum())}


def _points(side: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The quantiles as one weighted sample: each stands for its part of its day's rows, the outer for half of one."""
    part = np.diff(PROBABILITIES, prepend=0, append=1)
    part = (part[:-1] + part[1:]) / 2
    held = side.filter(pl.col("count") > 0)
    values = np.array(held["quantiles"].to_list(), float).reshape(-1, len(PROBABILITIES))
    return values.ravel(), (held["count"].to_numpy()[:, None] * part).ravel()
