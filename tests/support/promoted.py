"""A rollout whose candidate is found good without a look: for tests of what follows from a promotion."""

from __future__ import annotations

from datetime import UTC, datetime

from throughline.foundation.settings import Settings
from throughline.records import EndpointRecord
from throughline.rollout import promotion
from throughline.rollout.running import champion_lock, save
from throughline.rollout.state import Rollout
from throughline.rollout.strategy import decided, finished
from throughline.rollout.target import Target
from throughline.usecase import UseCase


def at_once(settings: Settings, usecase: UseCase, target: Target, released: EndpointRecord | Rollout) -> EndpointRecord:
    """The endpoint after a release: of a rollout, as the controller carries out its promotion."""
    if isinstance(released, EndpointRecord):
        return released
    good = decided(released, "promoted", "good", datetime.now(UTC))
    with champion_lock(settings, usecase):
        save(settings, good)
        endpoint = promotion.complete(settings, usecase, target, good)
        save(settings, finished(good, datetime.now(UTC)))
    return endpoint
