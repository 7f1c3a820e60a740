"""Prometheus metrics of the model server, in addition to those that KServe defines.

Owns: their names, labels and buckets, and the counts. Labels have few values: use cases, model versions, revisions,
roles, classes of traffic, decisions, views, flags. The counts are plain numbers until they are scraped: the client
library's own counters cost more per prediction than the model does.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from serving.loading import Loaded
from serving.protocol import Prediction
from throughline.events.outbox import Outbox
from throughline.records import Revision

_HOUR = 3600.0
AGES = [_HOUR * hours for hours in (1, 2, 3, 6, 12, 24, 48, 7 * 24, 30 * 24)]
SECONDS = [ms / 1000 for ms in (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 1000, 5000)]
SCORES = [step / 20 for step in range(1, 21)]
_REVISION = ["model_name", "model_version", "revision", "role"]


class Distribution:
    """Counts of values by bucket (upper bounds, inclusive, and one above them all), and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Distribution) -> None:
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus has them."""
        names, so_far, found = [*map(floatToGoString, self.bounds), "+Inf"], 0, []
        for name, count in zip(names, self.counts, strict=True):
            so_far += count
            found.append((name, float(so_far)))
        return found


@dataclass
class _Traffic:
    """What one revision did for one class of traffic."""

    errors: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    seconds: Distribution = field(default_factory=lambda: Distribution(SECONDS))
    scores: Distribution = field(default_factory=lambda: Distribution(SCORES))


class RevisionMetrics:
    """What one revision counts; safe to use from several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.traffic: dict[str, _Traffic] = defaultdict(_Traffic)
        self.flags: Counter[str] = Counter()
        self.stages: dict[str, Distribution] = defaultdict(lambda: Distribution(SECONDS))
        self.ages: dict[str, Distribution] = defaultdict(lambda: Distribution(AGES))

    def predicted(
        self,
        traffic: str,
        predictions: Iterable[tuple[Prediction, Mapping[str, datetime | None]]],
        now: datetime,
        seconds: float,
    ) -> None:
        """Count the predictions of a request at `now` (data clock), each with the times of the rows it used by view
        (None: none), and the time from the request's arrival until its answer is made."""
        with self.lock:
            mine = self.traffic[traffic]
            mine.seconds.observe(seconds)
            for prediction, feature_times in predictions:
                mine.decisions[prediction.decision] += 1
                mine.scores.observe(prediction.score)
                for flag in prediction.flags:
                    self.flags[flag.partition(":")[0]] += 1
                for view, at in feature_times.items():
                    if at is not None:
                        self.ages[view].observe((now - at).total_seconds())

    def failed(self, traffic: str) -> None:
        """Count a request that could not be answered."""
        with self.lock:
            self.traffic[traffic].errors += 1

    def took(self, **seconds: float) -> None:
        """Count times by stage."""
        with self.lock:
            for stage, lasted in seconds.items():
                self.stages[stage].observe(lasted)


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in one process do not share them."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._revisions: dict[tuple[str, str, str, str], RevisionMetrics] = {}
        self._serving: dict[str, list[tuple[Revision, Loaded]]] = {}
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()

    def of(self, revision: Revision) -> RevisionMetrics:
        """The counts of a revision in its role, also of earlier times in it."""
        key = (revision.usecase, str(revision.version), revision.revision, revision.role)
        return self._revisions.setdefault(key, RevisionMetrics())

    def deployed(self, usecase: str, revisions: Iterable[tuple[Revision, Loaded]]) -> None:
        """Show these revisions and models as what serves a use case."""
        self._serving[usecase] = list(revisions)

    def render(self) -> bytes:
        """KServe's metrics and ours in the text format."""
        return generate_latest(REGISTRY) + generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry: the counts as metric families."""
        yield from self._of_traffic()
        yield from self._of_features()
        yield from self._of_serving()
        requests = CounterMetricFamily(
            "throughline_requests", "Requests", labels=["model_name", "protocol", "status"]
        )  # fmt: skip
        for labels, count in list(self.requests.items()):
            requests.add_metric(labels, count)
        yield requests
        dropped = CounterMetricFamily(
            "throughline_shadow_dropped", "Copies that a shadow had no time for", labels=["model_name", "revision"]
        )
        for names, count in list(self.dropped.items()):
            dropped.add_metric(names, count)
        yield dropped
        shipped = self._outbox.shipped
        yield CounterMetricFamily("throughline_events_sent", "Events confirmed by the collector", value=shipped.sent)
        yield CounterMetricFamily("throughline_events_set_aside", "Events refused for good", value=shipped.set_aside)
        yield CounterMetricFamily("throughline_events_lost", "Events that could not be kept", value=self._outbox.lost)
        yield GaugeMetricFamily("throughline_events_waiting", "Events in the outbox", value=self._outbox.waiting)

    def _of_traffic(self) -> Iterator[Metric]:
        labels = [*_REVISION, "traffic"]
        predictions = CounterMetricFamily("throughline_predictions", "Predictions", labels=[*labels, "decision"])
        errors = CounterMetricFamily("throughline_prediction_errors", "Requests not answered", labels=labels)
        seconds = HistogramMetricFamily("throughline_prediction_seconds", "Time of a request", labels=labels)
        scores = HistogramMetricFamily("throughline_score", "Scores", labels=labels)
        flags = CounterMetricFamily("throughline_prediction_flags", "Flags of predictions", labels=[*_REVISION, "flag"])
        for revision, counted in list(self._revisions.items()):
            with counted.lock:
                for traffic, mine in counted.traffic.items():
                    of = [*revision, traffic]
                    for decision, count in mine.decisions.items():
                        predictions.add_metric([*of, decision], count)
                    errors.add_metric(of, mine.errors)
                    seconds.add_metric(of, mine.seconds.buckets(), mine.seconds.total)
                    scores.add_metric(of, mine.scores.buckets(), mine.scores.total)
                for flag, count in counted.flags.items():
                    flags.add_metric([*revision, flag], count)
        yield from (predictions, errors, seconds, scores, flags)

    def _of_features(self) -> Iterator[Metric]:
        """Of a use case's revisions together."""
        stages: dict[tuple[str, str], Distribution] = defaultdict(lambda: Distribution(SECONDS))
        ages: dict[tuple[str, str], Distribution] = defaultdict(lambda: Distribution(AGES))
        for (usecase, *_), counted in list(self._revisions.items()):
            with counted.lock:
                for together, own in ((stages, counted.stages), (ages, counted.ages)):
                    for name, values in own.items():
                        together[usecase, name].add(values)
        for name, about, label, together in (
            ("throughline_stage_seconds", "Time by stage of a request", "stage", stages),
            ("throughline_feature_age_seconds", "Age on the data clock of the feature row used", "view", ages),
        ):
            family = HistogramMetricFamily(name, about, labels=["model_name", label])
            for labels, values in together.items():
                family.add_metric(labels, values.buckets(), values.total)
            yield family

    def _of_serving(self) -> Iterator[Metric]:
        weights = GaugeMetricFamily(
            "throughline_revision_weight", "Share of requests", labels=["model_name", "revision", "role"]
        )
        info = GaugeMetricFamily(
            "throughline_model_info", "What serves, to join on", labels=[*_REVISION, "sha256", "trainer", "parameters"]
        )
        for revision, model in [one for serving in list(self._serving.values()) for one in serving]:
            weights.add_metric([revision.usecase, revision.revision, revision.role], revision.weight)
            about = [revision.usecase, str(revision.version), revision.revision, revision.role, revision.sha256]
            info.add_metric([*about, model.trainer, model.parameters], 1)
        yield from (weights, info)
