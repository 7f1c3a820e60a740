"""Anytime-valid comparison of two means of values in [0, 1], window by window. Pure, vectorised.

Owns: the test martingale and how it is carried from look to look. Does not own: which means are compared, what
follows (`judge.py`).

**The bet of one window.** In a window stable has `n_s` values with sum `x_s`, the candidate `n` with sum `x`; the means
`p_s` and `p` may be others in each window. The null hypothesis is `p <= p_s + tolerance` in each one. Choose, before
the window, a point on its edge, `q = q_s + tolerance`, and a stake `b >= 0`, and let `m = b / n`, `m_s = b / n_s`:

    E = (1 + m(1-q))^x (1 - mq)^(n-x) * (1 - m_s(1-q_s))^x_s (1 + m_s q_s)^(n_s-x_s)

By convexity a value v in [0, 1] contributes at most `1 + m(v - q)`, so the expectation of E is at most
`(1 + m(p-q))^n (1 - m_s(p_s-q_s))^n_s <= exp(b((p-q) - (p_s-q_s))) <= 1` under the null. The product over windows is a
nonnegative supermartingale, and by Ville's inequality it ever reaches 1/alpha with a probability of at most alpha,
however often one looks. What makes both revisions worse at once (a busy machine) moves `p` and `p_s` together. The
growth is largest for an excess `d` over the tolerance with `b = d / (q(1-q)/n + q_s(1-q_s)/n_s)`; a mixture over `d`
needs no guess. `q_s` is stable's mean in the windows before.

**Faults that begin late.** A martingale that fell in good windows would have to climb back first. So the products from
each window on are mixed with the weights 1/(j(j+1)), window j = 1, 2, ...; those not yet begun count 1.

Sources: betting on bounded means: Waudby-Smith, Ramdas, "Estimating means of bounded random variables by betting",
JRSS B 2024. Two samples in blocks: Turner, Ly, Grunwald, "Generic E-variables for exact sequential k-sample tests",
JSPI 2024. Starting anew: Shin, Ramdas, Rinaldo, "E-detectors", NEJSDS 2024. Use in releases: Lindon, Sanden, Shirikian,
"Rapid Regression Detection in Software Deployments through Sequential Testing", KDD 2022, which compares distribution
functions, as Howard, Ramdas, "Sequential estimation of quantiles", Bernoulli 2022, does; Lindon, Malek, "Anytime-Valid
Inference for Multinomial Count Data", NeurIPS 2022, for rates that vary alike in time; the mixture is that of Johari
et al., "Always Valid Inference", Operations Research 2022 (mSPRT).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXCESSES: Array = np.array([0.005, 0.02, 0.07, 0.2, 0.5])  # over the tolerance, mixed with equal weights
_LARGEST_LOSS = 0.9  # of what was won so far, by one value: a bet never loses everything
_EDGE = 1e-4  # a predicted mean stays this far from 0 and 1


def log_bets(stable_n: Any, stable_sum: Any, n: Any, total: Any, predicted: Any, tolerance: Any) -> Array:
    """log E of one window for each excess: the arguments' common shape, and an axis of `EXCESSES` at its end.

    `predicted`: stable's mean by earlier windows. `tolerance`: in [0, 1). Without values on either side E is 1.
    """
    arguments = np.broadcast_arrays(stable_n, stable_sum, n, total, predicted, tolerance)
    n_s, x_s, n_c, x_c, predicted, tolerance = (np.asarray(each, float)[..., None] for each in arguments)
    some = (n_c > 0) & (n_s > 0)
    n_c = np.where(some, n_c, 1)
    n_s = np.where(some, n_s, 1)
    # both means of the point stay away from 0 and 1
    q_s = np.clip(predicted, _EDGE, 1 - tolerance - _EDGE)
    q = q_s + tolerance
    stake = EXCESSES / (q * (1 - q) / n_c + q_s * (1 - q_s) / n_s)
    stake = np.minimum(stake, _LARGEST_LOSS * np.minimum(n_c / q, n_s / (1 - q_s)))
    m, m_s = stake / n_c, stake / n_s
    log_e = (
        x_c * np.log1p(m * (1 - q))
        + (n_c - x_c) * np.log1p(-m * q)
        + x_s * np.log1p(-m_s * (1 - q_s))
        + (n_s - x_s) * np.log1p(m_s * q_s)
    )
    return np.where(some, log_e, 0.0)


def carried(log_sums: Array, window: Any, log_e: Array) -> Array:
    """The weighted sums of products of the windows so far, after one more: `window` counts from 1. Starts at -inf."""
    return np.logaddexp(log_sums, -np.log(window * (window + 1.0))) + log_e


def evidence(log_sums: Array, windows: Any) -> Array:
    """log of the mixture over starts, excesses (last axis) and cells (the axis before it) after `windows` windows.

    Its exponential is the test martingale: evidence against the null hypothesis, 1 at the start.
    """
    count = log_sums.shape[-1] * log_sums.shape[-2]
    mixed = np.logaddexp.reduce(log_sums, axis=(-2, -1)) - np.log(count)
    return np.logaddexp(mixed, -np.log(windows + 1.0))
