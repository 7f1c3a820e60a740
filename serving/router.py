"""Which revision answers a request, and which get a copy of it.

Owns: the draw by weights, sticky assignment, selection by header. Does not own: the revisions (`throughline.rollout`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from throughline.records import RevisionSet


class Router:
    """Assigns requests to the revisions of a set.

    A sticky key lies at one place in [0, 1) for a salt. The revisions beside the stable one take the places from 0
    upwards, so a rising weight only ever moves callers from the stable revision to another.
    """

    def __init__(self, revisions: RevisionSet, draw: Callable[[], float] = random.random) -> None:
        self.stable = revisions.stable.revision
        self.shadows = [(one.revision, one.weight) for one in revisions.revisions if one.role == "shadow"]
        self.sticky = revisions.sticky
        self._draw = draw
        self._bounds: list[tuple[float, str]] = []
        upper = 0.0
        for one in revisions.revisions:
            if one.role == "canary":
                upper += one.weight
                self._bounds.append((upper, one.revision))

    def choose(self, key: Any = None) -> str:
        """The revision that answers. `key`: the value of the sticky field; without one, or without a sticky field, by
        chance."""
        if not self._bounds:
            return self.stable
        at = self._draw() if self.sticky is None or key is None else place_of(self.sticky.salt, key)
        return next((revision for upper, revision in self._bounds if at < upper), self.stable)

    def copies(self) -> list[str]:
        """The shadows that get a copy of a request."""
        return [revision for revision, weight in self.shadows if self._draw() < weight]


def place_of(salt: str, key: Any) -> float:
    """Where a key lies in [0, 1), evenly over keys and independently between salts."""
    digest = blake2b(str(key).encode(), key=blake2b(salt.encode(), digest_size=32).digest(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53
