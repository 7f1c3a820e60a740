"""Requests to replay when live ones are few: so a rollout can be judged without traffic.

Owns: when traffic is thin, which requests are replayed. Does not own: sending them (a target), the judgement.
"""

from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

from throughline.events.schema import LAYER, TABLE, production
from throughline.foundation.clock import data_clock
from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings
from throughline.lakehouse.table import find_pin, read
from throughline.rollout.endpoint import as_instances, requests_between
from throughline.usecase import UseCase

POOL = 2000  # newest requests to draw from
ENOUGH = 200  # fewer different ones are a poor sample of the distribution of scores
AT_ONCE = 100
PATIENCE = timedelta(seconds=30)  # that a stage without a dwell time waits for live requests
SPINE = timedelta(days=1)  # before and after the data clock


def is_thin(requests: float, window: timedelta, dwell: timedelta, samples: int) -> bool:
    """Whether requests that come at the rate of `window` are fewer than `samples` in `dwell` (or `PATIENCE`)."""
    return requests * max(dwell, PATIENCE) < samples * window


def recent_requests(settings: Settings, usecase: UseCase) -> tuple[list[dict[str, Any]], str]:
    """`AT_ONCE` requests drawn from the newest logged ones, and where they are from.

    Where fewer than `ENOUGH` different ones were logged, they are made of rows of the spine: real ones, requested about
    now. Raises `ThroughlineError` when there is neither.
    """
    logged = _logged(settings, usecase)
    source = "the inference log"
    if len(logged) < ENOUGH:
        now = data_clock(settings, usecase.clock_start(settings)).now()
        logged = as_instances(usecase, requests_between(settings, usecase, now - SPINE, now + SPINE).tail(POOL))
        if not logged:
            raise ThroughlineError(
                f"There is nothing to replay: few requests of {usecase.name} were logged, and its spine has no row "
                f"within a day of {now.isoformat()}."
            )
        source = "the spine, as few requests were logged"
    return random.sample(logged, min(AT_ONCE, len(logged))), source


def _logged(settings: Settings, usecase: UseCase) -> list[dict[str, Any]]:
    """Different requests, the newest first."""
    table = find_pin(settings, f"{usecase.name}/{LAYER}/{TABLE}")
    if table is None:
        return []
    newest = (
        production(read(settings, table))
        .select("wall_time", "row_key", "request")
        .sort("wall_time", descending=True)
        .head(5 * POOL)
    )
    texts = newest.unique("row_key", keep="first", maintain_order=True).head(POOL).collect()["request"]
    return [{name: request.get(name) for name in usecase.request} for request in map(json.loads, texts)]
