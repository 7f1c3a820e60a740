"""A target without a server: it serves what is applied to it, and counts made-up requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from tests.support.rollouts import BOUNDS, drawn
from throughline.foundation.errors import ThroughlineError
from throughline.records import ModelRecord, RevisionSet
from throughline.rollout.evidence import Counts
from throughline.rollout.target import PRODUCTION, SHADOW, Capabilities, Look, Refused, Served
from throughline.usecase import UseCase


class StoppedClock:
    """A wall clock that only tests move, from when it was made on."""

    def __init__(self) -> None:
        self.at = datetime.now(UTC)

    def now(self) -> datetime:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class FakeTarget:
    """`does`: version -> options of `drawn`; `refuses`: versions that cannot be loaded; `live`: requests per look.

    `calls`: what was done to it, in order. `before`: called with each of those names before it is done.
    """

    def __init__(self, clock: StoppedClock) -> None:
        self.capabilities = Capabilities(weights=True, sticky=True, mirror=True)
        self.does: dict[int, dict[str, Any]] = {}
        self.refuses: dict[int, str] = {}
        self.down = False
        self.live = 0
        self.replayed = 0
        self.served: dict[str, RevisionSet] = {}
        self.history: list[list[tuple[int, str, float]]] = []
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        self._clock = clock
        self._random = np.random.default_rng(2013)
        self._counts: dict[str, dict[str, Counts]] = {}
        self._versions: dict[str, int] = {}

    def address(self, usecase: str) -> str:
        return f"http://fake/{usecase}"

    def place(self, usecase: UseCase, model: ModelRecord) -> None:
        self._call("place")

    def apply(self, revisions: RevisionSet) -> None:
        self._call("apply")
        for one in revisions.revisions:
            if one.version in self.refuses:
                raise Refused(f"{one.model}: {self.refuses[one.version]}")
            self._versions[one.revision] = one.version
        self.served[revisions.usecase] = revisions
        self.history.append([(one.version, one.role, one.weight) for one in revisions.revisions])

    def observe(self, usecase: str) -> tuple[Served, ...]:
        self._reached()
        revisions = self.served[usecase].revisions if usecase in self.served else ()
        return tuple(Served(revision=one.revision, role=one.role, weight=one.weight) for one in revisions)

    def evidence(self, usecase: str) -> Look:
        """A look, after the live requests since the one before."""
        self._reached()
        for one in self.served[usecase].revisions if usecase in self.served else ():
            requests = round(self.live * one.weight)
            self._count(one.revision, SHADOW if one.role == "shadow" else PRODUCTION, requests)
        return Look(at=self._clock.now(), latency_bounds=BOUNDS, counts=self._counts)

    def replay(self, usecase: str, revisions: Sequence[str], instances: Sequence[dict[str, Any]]) -> None:
        self._call("replay")
        self.replayed += len(instances)
        for revision in revisions:
            self._count(revision, SHADOW, len(instances))

    def restart(self) -> None:
        """As a server does: the counts begin at zero."""
        self._counts = {}

    def _count(self, revision: str, traffic: str, requests: int) -> None:
        if requests:
            options = self.does.get(self._versions[revision], {})
            counts = self._counts.setdefault(revision, {})
            more = drawn(self._random, requests, **options)
            self._counts = {
                **self._counts, revision: {**counts, traffic: counts.get(traffic, Counts()).plus(more)}
            }  # fmt: skip

    def _call(self, name: str) -> None:
        self._reached()
        self.before(name)
        self.calls.append(name)

    def _reached(self) -> None:
        if self.down:
            raise ThroughlineError("the target does not answer")
