"""What a rollout reads of tables and MLflow, for homes without them: requests to replay; there is no evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.support.fake_store_server import USECASE
from throughline.rollout import controller, running
from throughline.usecase import get_usecase
from throughline.usecase.requests import example_instance


def requests(seed: int) -> list[dict[str, Any]]:
    """A hundred different ones, by hour, carrier and aircraft."""
    random = np.random.default_rng(seed)
    example = example_instance(get_usecase(USECASE))
    return [
        example
        | {
            "scheduled_departure": f"2013-04-01T{random.integers(9, 24):02d}:00:00+00:00",
            "carrier": str(random.choice(["B6", "UA", "DL"])),
            "tailnum": str(random.choice(["N318JB", "N14228", "N0"])),
        }
        for _ in range(100)
    ]


def without_tables(patch: pytest.MonkeyPatch) -> None:
    """Rollouts in this process replay made-up requests."""
    seeds = itertools.count()

    patch.setattr(controller, "recent_requests", lambda *_: (requests(next(seeds)), "made up"))
    patch.setattr(running.publish, "fetch", lambda *_: None)
