"""Metrics to an MLflow run during a training, over MLflow's REST API.

Owns: sending numbers. Does not own: the run, which the platform creates and ends. By the standard library: MLflow's
own client costs every worker 4 s of a core, httpx 0.2 s.
"""

from __future__ import annotations

import json
import sys
import time
from urllib.request import Request, urlopen

from throughline.experiment.spec import Tracking
from throughline.foundation.errors import ThroughlineError

_TIMEOUT_S = 10


def log_metrics(tracking: Tracking, step: int, metrics: dict[str, float]) -> None:
    """Send the metrics of a step. A failure is a line of the log and does not end a training: the report has them all.

    Raises `ThroughlineError` for an address that is not http or https.
    """
    if not tracking.uri.startswith(("http://", "https://")):
        raise ThroughlineError(f"Tracking address {tracking.uri}: give the http(s) address of an MLflow server.")
    now = int(time.time() * 1000)
    entries = [{"key": key, "value": value, "timestamp": now, "step": step} for key, value in metrics.items()]
    request = Request(
        f"{tracking.uri}/api/2.0/mlflow/runs/log-batch",
        json.dumps({"run_id": tracking.run_id, "metrics": entries}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urlopen(request, timeout=_TIMEOUT_S).close()
    except OSError as error:
        sys.stderr.write(f"Metrics of step {step} did not reach {tracking.uri}: {error}\n")
