"""A simple rule that a model must beat: the rate of positives at the level of one feature. Pure.

Owns: learning the rule from rows before the holdout, and its scores. Does not own: which feature (the declaration).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SimpleRule:
    """Rates of positives between `edges` [bins - 1], and of rows without a value."""

    edges: np.ndarray
    rates: np.ndarray
    missing: float

    @classmethod
    def learn(cls, values: np.ndarray, labels: np.ndarray, bins: int) -> SimpleRule:
        """From values (NaN: missing) and labels 0/1 [rows], in bins of equally many rows.

        A level that no row had has the rate of all rows, towards which every rate is drawn by one row.
        """
        known = ~np.isnan(values)
        overall = float(labels.mean()) if len(labels) else float("nan")
        edges = np.unique(np.quantile(values[known], np.linspace(0, 1, bins + 1)[1:-1])) if known.any() else np.empty(0)
        place = np.searchsorted(edges, values[known], side="left")
        rows = np.bincount(place, minlength=len(edges) + 1)
        late = np.bincount(place, labels[known], minlength=len(edges) + 1)
        absent = labels[~known]
        return cls(edges, (late + overall) / (rows + 1), float((absent.sum() + overall) / (len(absent) + 1)))

    def score(self, values: np.ndarray) -> np.ndarray:
        """Probability of the positive class [rows]."""
        found = self.rates[np.searchsorted(self.edges, np.nan_to_num(values), side="left")]
        return np.where(np.isnan(values), self.missing, found)
