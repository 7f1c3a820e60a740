"""Prometheus metrics of the model server, in addition to those that KServe defines.

Owns: their names and labels. Labels have few values: use cases, model versions, roles, decisions, views, flags.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from throughline.events.outbox import Outbox
from throughline.records import Revision

_HOUR = 3600
_AGES = [_HOUR * hours for hours in (1, 2, 3, 6, 12, 24, 48, 7 * 24, 30 * 24)]


class Metrics:
    """The counters of one server, in a registry of its own: two servers in one process do not share them."""

    def __init__(self, outbox: Outbox) -> None:
        self._registry = CollectorRegistry()
        labels = ["model_name", "model_version", "role", "decision"]
        self._predictions = Counter("throughline_predictions", "Predictions", labels, registry=self._registry)
        self._flags = Counter("throughline_prediction_flags", "Flags", ["model_name", "flag"], registry=self._registry)
        self._ages = Histogram(
            "throughline_feature_age_seconds",
            "Age on the data clock of the feature row used",
            ["model_name", "view"],
            buckets=_AGES,
            registry=self._registry,
        )
        self._registry.register(_Events(outbox))

    def observe(self, revision: Revision, decision: str, flags: list[str], ages: dict[str, float | None]) -> None:
        """Count one prediction. `ages`: of the feature rows used, in seconds by view; None for a view without one."""
        self._predictions.labels(revision.name, revision.version, revision.role, decision).inc()
        for flag in flags:
            self._flags.labels(revision.name, flag).inc()
        for view, age in ages.items():
            if age is not None:
                self._ages.labels(revision.name, view).observe(age)

    def render(self) -> bytes:
        """KServe's metrics and ours in the text format."""
        return generate_latest(REGISTRY) + generate_latest(self._registry)


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
