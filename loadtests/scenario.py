"""The scenario: users send real requests to the local endpoint at a steady rate, with Locust.

Owns: where requests come from, what a user does, when it ends. Does not own: the levels (`levels`).
"""

from __future__ import annotations

import itertools
import json
from typing import Any
from urllib.parse import urlsplit

import httpx

from loadtests.levels import Measured
from throughline.events.client import drain, snapshot
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.tokens import auth_headers
from throughline.foundation.settings import Settings, is_loopback
from throughline.lakehouse.table import find_pin, read
from throughline.rollout.endpoint import as_instances
from throughline.usecase import UseCase
from throughline.usecase.requests import example_instance

SAMPLE = 2000
RATE = 10.0  # requests per second and user
SEED = 2013


def require_loopback(url: str) -> None:
    """A load test is for the endpoint on this machine. Raises `ThroughlineError` for any other."""
    host = urlsplit(url).hostname
    if host is None or not is_loopback(host):
        raise ThroughlineError(f"{url} is not on this machine: load tests are sent to loopback addresses only.")


def instances(settings: Settings, usecase: UseCase) -> list[dict[str, Any]]:
    """Real requests from the use case's spine table, or the declaration's example before that table exists."""
    table = find_pin(settings, f"{usecase.name}/features/{usecase.features.spine}")
    if table is None:
        return [example_instance(usecase)]
    rows = read(settings, table).select(list(usecase.request)).collect()
    return as_instances(usecase, rows.sample(min(SAMPLE, rows.height), shuffle=True, seed=SEED))


def served(settings: Settings, url: str) -> list[str]:
    """Names of the use cases the endpoint serves now. Raises `ThroughlineError` when there is none."""
    try:
        answer = httpx.get(f"{url}/v1/throughline/revisions", headers=auth_headers(settings)).raise_for_status()
    except httpx.HTTPError as error:
        raise ThroughlineError(f"{url} does not answer ({error}): run `make run`.") from error
    names = list(dict.fromkeys(entry["usecase"] for entry in answer.json()))
    if not names:
        raise ThroughlineError(f"{url} serves no model yet: deploy one with `make run`.")
    return names


def drive(settings: Settings, usecase: UseCase, url: str, users: int, seconds: float) -> Measured:
    """Run the load for `seconds` and measure. Importing Locust patches the standard library: nothing runs after this
    in the process but the report."""
    bodies = itertools.cycle([json.dumps({"instances": [each]}) for each in instances(settings, usecase)])
    lost_before = _events_lost(settings, usecase, url)

    # postpones locust, which patches the standard library
    import gevent
    from locust import FastHttpUser, constant_throughput, task
    from locust.env import Environment

    path, headers = f"/v1/models/{usecase.name}:predict", {"Content-Type": "application/json", **auth_headers(settings)}

    class Caller(FastHttpUser):
        host = url
        wait_time = constant_throughput(RATE)

        @task
        def predict(self) -> None:
            with self.client.post(path, data=next(bodies), headers=headers, catch_response=True) as answer:
                if answer.status_code != 200 or not _is_prediction(answer.text):
                    answer.failure(f"{answer.status_code}: {(answer.text or '')[:100]}")

    environment = Environment(user_classes=[Caller])
    runner = environment.create_local_runner()
    runner.start(users, spawn_rate=users)
    gevent.spawn_later(seconds, runner.quit)
    runner.greenlet.join(timeout=seconds + 30)
    total = environment.stats.total
    p50, p95, p99 = (float(total.get_response_time_percentile(share)) for share in (0.5, 0.95, 0.99))
    return Measured(
        requests=total.num_requests,
        seconds=(total.last_request_timestamp or total.start_time) - total.start_time,
        failed_share=total.fail_ratio,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        events_lost=_events_lost(settings, usecase, url) - lost_before,
    )


def _events_lost(settings: Settings, usecase: UseCase, url: str) -> int:
    """Lost events by the collector's count, after all that were sent have arrived."""
    drain(settings, url)
    return snapshot(settings, usecase).lost


def _is_prediction(text: str | None) -> bool:
    try:
        (prediction,) = json.loads(text or "")["predictions"]
        return 0 <= prediction["score"] <= 1 and bool(prediction["prediction_id"])
    except (ValueError, KeyError, TypeError):
        return False
