"""The counts of revisions out of a page of Prometheus metrics. Pure.

Owns: which series are evidence. Does not own: their names and labels (`serving/metrics.py`), what they show
(`judge.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime

from prometheus_client.parser import text_string_to_metric_families

from throughline.rollout.evidence import SCORE_BINS, Counts
from throughline.rollout.target import PRODUCTION, Look

ERRORS = "throughline_prediction_errors_total"
SECONDS = "throughline_prediction_seconds_bucket"
SCORES = "throughline_score_bucket"

Key = tuple[str, str]  # revision, traffic class


def look_of(page: str, usecase: str, losses: Mapping[str, tuple[int, float]], at: datetime) -> Look:
    """What each revision of a use case has done, by traffic class.

    `losses`: number and sum of the losses of labelled production predictions by revision. A request is one that was
    answered (it has a time) or failed. Raises `ValueError` when the page is no metrics.
    """
    errors: dict[Key, float] = defaultdict(float)
    buckets: dict[str, dict[Key, dict[float, float]]] = {
        name: defaultdict(lambda: defaultdict(float)) for name in (SECONDS, SCORES)
    }
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("model_name") != usecase or not {"revision", "traffic"} <= labels.keys():
                continue
            key = labels["revision"], labels["traffic"]
            if sample.name == ERRORS:
                errors[key] += sample.value
            elif sample.name in buckets:
                buckets[sample.name][key][float(labels["le"])] += sample.value
    seconds, scores = buckets[SECONDS], buckets[SCORES]
    bounds = tuple(sorted({bound for by_bound in seconds.values() for bound in by_bound if math.isfinite(bound)}))
    counts: dict[str, dict[str, Counts]] = defaultdict(dict)
    for revision, traffic in {*errors, *seconds, *scores, *((one, PRODUCTION) for one in losses)}:
        key = revision, traffic
        latency = _bins(seconds[key]) if key in seconds else ()
        outcomes, loss = losses.get(revision, (0, 0.0)) if traffic == PRODUCTION else (0, 0.0)
        counts[revision][traffic] = Counts(
            requests=sum(latency) + errors[key],
            errors=errors[key],
            latency=latency,
            # a score is at most 1, so the bin above the last bound is empty
            scores=_bins(scores[key])[:SCORE_BINS] if key in scores else (),
            outcomes=outcomes,
            loss=loss,
        )
    return Look(at=at, latency_bounds=bounds, counts=dict(counts))


def _bins(cumulative: Mapping[float, float]) -> tuple[float, ...]:
    """Counts by bin, of counts up to each bound; the last bin is above all finite ones."""
    rising = [cumulative[bound] for bound in sorted(cumulative)]
    return tuple(now - before for now, before in zip(rising, [0.0, *rising], strict=False))
