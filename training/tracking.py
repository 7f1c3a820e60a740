"""Metrics to an MLflow run while a training goes on, over MLflow's REST API.

Owns: sending numbers. Does not own: the run, which whoever launches a training creates and ends.
The `mlflow` package is not used here: importing it takes 6 s of a training of 20.
"""

from __future__ import annotations

import sys
import time

import httpx

from throughline.experiment.spec import Tracking
from throughline.foundation.errors import ThroughlineError


class MetricLog:
    """Sends metrics of one run; without `tracking` it does nothing."""

    def __init__(self, tracking: Tracking | None) -> None:
        self._tracking = tracking
        if tracking is None:
            return
        if not tracking.uri.startswith(("http://", "https://")):
            raise ThroughlineError(f"Tracking address {tracking.uri}: give the http(s) address of an MLflow server.")
        self._client = httpx.Client(base_url=tracking.uri, timeout=10)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A lost metric is reported in the log and does not end a training: the report holds all of them."""
        if self._tracking is None:
            return
        now = int(time.time() * 1000)
        entries = [{"key": key, "value": value, "timestamp": now, "step": step} for key, value in metrics.items()]
        try:
            self._client.post(
                "/api/2.0/mlflow/runs/log-batch", json={"run_id": self._tracking.run_id, "metrics": entries}
            ).raise_for_status()
        except httpx.HTTPError as error:
            print(f"Metrics of step {step} did not reach {self._tracking.uri}: {error}", file=sys.stderr)  # noqa: T201
