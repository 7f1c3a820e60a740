"""Prometheus metrics of the model server, in addition to those that KServe defines.

Owns: their names and labels. Labels have few values: use cases, model versions, roles, decisions, views, flags.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.loading import Loaded
from serving.protocol import Prediction
from throughline.events.outbox import Outbox
from throughline.records import Revision

_HOUR = 3600
_AGES = [_HOUR * hours for hours in (1, 2, 3, 6, 12, 24, 48, 7 * 24, 30 * 24)]
SECONDS = [ms / 1000 for ms in (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 1000, 5000)]
SCORES = [step / 20 for step in range(1, 21)]
_REVISION = ["model_name", "model_version", "revision", "role"]


class Metrics:
    """The metrics of one server, in a registry of its own: two servers in one process do not share them."""

    def __init__(self, outbox: Outbox) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Events(outbox))
        self._shown: dict[str, list[tuple[Gauge, tuple[str, ...]]]] = {}
        traffic = [*_REVISION, "traffic"]
        self.predictions = self._make(Counter, "predictions", "Predictions", [*traffic, "decision"])
        self.errors = self._make(Counter, "prediction_errors", "Requests that could not be answered", traffic)
        self.seconds = self._make(
            Histogram, "prediction_seconds", "Time in the server of a request", traffic, buckets=SECONDS
        )
        self.scores = self._make(Histogram, "score", "Scores", traffic, buckets=SCORES)
        self.flags = self._make(Counter, "prediction_flags", "Flags of predictions", [*_REVISION, "flag"])
        self.stages = self._make(
            Histogram, "stage_seconds", "Time by stage of a request", ["model_name", "stage"], buckets=SECONDS
        )
        self.ages = self._make(
            Histogram,
            "feature_age_seconds",
            "Age on the data clock of the feature row used",
            ["model_name", "view"],
            buckets=_AGES,
        )
        self.requests = self._make(Counter, "requests", "Requests", ["model_name", "protocol", "status"])
        self.dropped = self._make(
            Counter, "shadow_dropped", "Copies that a shadow had no time for", ["model_name", "revision"]
        )
        self.weights = self._make(Gauge, "revision_weight", "Share of requests", ["model_name", "revision", "role"])
        self.info = self._make(
            Gauge, "model_info", "What serves, to join on", [*_REVISION, "sha256", "trainer", "parameters"]
        )

    def deployed(self, usecase: str, revisions: Iterable[tuple[Revision, Loaded]]) -> None:
        """Show these revisions and models as what serves a use case."""
        for gauge, labels in self._shown.pop(usecase, []):
            gauge.remove(*labels)
        shown = []
        for revision, model in revisions:
            weight = (usecase, revision.revision, revision.role)
            about = (*_labels(revision), revision.sha256, model.trainer, model.parameters)
            self.weights.labels(*weight).set(revision.weight)
            self.info.labels(*about).set(1)
            shown += [(self.weights, weight), (self.info, about)]
        self._shown[usecase] = shown

    def render(self) -> bytes:
        """KServe's metrics and ours in the text format."""
        return generate_latest(REGISTRY) + generate_latest(self.registry)

    def _make(self, kind: type, name: str, about: str, labels: list[str], **how: Any) -> Any:
        return kind(f"throughline_{name}", about, labels, registry=self.registry, **how)


def _labels(revision: Revision) -> tuple[str, str, str, str]:
    return revision.usecase, str(revision.version), revision.revision, revision.role


class RevisionMetrics:
    """What one revision counts. The counters of each label are looked up once: that costs more than counting."""

    def __init__(self, metrics: Metrics, revision: Revision) -> None:
        self._metrics = metrics
        self._labels = _labels(revision)
        self._name = revision.usecase
        self._held: dict[tuple[str, ...], Any] = {}

    def predicted(
        self, traffic: str, prediction: Prediction, now: datetime, feature_times: Mapping[str, datetime | None]
    ) -> None:
        """Count a prediction made at `now` (data clock) with rows of these times by view; None: with none."""
        self._of("predictions", traffic, prediction.decision).inc()
        self._of("scores", traffic).observe(prediction.score)
        for flag in prediction.flags:
            self._of("flags", flag.partition(":")[0]).inc()
        for view, at in feature_times.items():
            if at is not None:
                self._shared("ages", view).observe((now - at).total_seconds())

    def answered(self, traffic: str, seconds: float) -> None:
        """Count the time of a request, from its arrival until its answer is made."""
        self._of("seconds", traffic).observe(seconds)

    def failed(self, traffic: str) -> None:
        """Count a request that could not be answered."""
        self._of("errors", traffic).inc()

    def stages(self, **seconds: float) -> None:
        """Count times by stage."""
        for stage, lasted in seconds.items():
            self._shared("stages", stage).observe(lasted)

    def _of(self, name: str, *labels: str) -> Any:
        child = self._held.get((name, *labels))
        if child is None:
            child = self._held[(name, *labels)] = getattr(self._metrics, name).labels(*self._labels, *labels)
        return child

    def _shared(self, name: str, label: str) -> Any:
        child = self._held.get((name, label))
        if child is None:
            child = self._held[(name, label)] = getattr(self._metrics, name).labels(self._name, label)
        return child


class _Events:
    """The counts of the outbox and of the shipping process, read at each scrape."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def collect(self) -> Iterator[Metric]:
        shipped = self._outbox.shipped
        yield CounterMetricFamily("throughline_events_sent", "Events confirmed by the collector", value=shipped.sent)
        yield CounterMetricFamily("throughline_events_set_aside", "Events refused for good", value=shipped.set_aside)
        yield CounterMetricFamily("throughline_events_lost", "Events that could not be kept", value=self._outbox.lost)
        yield GaugeMetricFamily("throughline_events_waiting", "Events in the outbox", value=self._outbox.waiting)
