"""The KServe target in Standard mode: has a set of revisions serve, step by step, and reports what serves.

Owns: waiting, the deadline. Does not own: what is to be done (`steps.py`), the requests (`client.py`). `evidence` and
`replay` of `rollout/target.py` need the servers' own addresses, which are known inside the cluster only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from throughline.foundation.errors import ThroughlineError
from throughline.records import RevisionSet
from throughline.rollout.kserve.cluster import CAPABILITIES, Cluster, usecase_name
from throughline.rollout.kserve.reading import Objects, served
from throughline.rollout.kserve.steps import next_steps
from throughline.rollout.target import Capabilities, Refused, Served

POLL_S = 1.0
READY_S = 600.0  # until all servers are ready: a node may have to be added, an image to be pulled


class Client(Protocol):
    """Requests to an API server. What it does not do raises `ThroughlineError`."""

    def objects(self, usecase: str) -> Objects:
        """What there is for the use case of this name (`cluster.usecase_name`)."""
        ...

    def put(self, content: dict[str, Any]) -> None: ...

    def delete(self, content: dict[str, Any]) -> None:
        """Harmless when it is not there."""
        ...


class KServeServers:
    """The revisions of use cases in one cluster."""

    def __init__(
        self,
        cluster: Cluster,
        client: Client,
        report: Callable[[str], None] = lambda _: None,
        ready_s: float = READY_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`report` is called with each action and each new reason to wait."""
        self._cluster, self._client = cluster, client
        self._report, self._ready_s, self._sleep, self._clock = report, ready_s, sleep, clock

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES[self._cluster.mode]

    def apply(self, revisions: RevisionSet) -> None:
        """As `Target.apply`. Servers of a set that is refused are removed, unless requests reach them."""
        name, until, waited = usecase_name(self._cluster, revisions.usecase), self._clock() + self._ready_s, ""
        while True:
            steps = next_steps(self._cluster, revisions, self._client.objects(name))
            for action in steps.actions:
                self._report(str(action))
                (self._client.put if action.kind == "put" else self._client.delete)(dict(action.object))
            if steps.failed:
                raise Refused(f"{revisions.usecase} is not deployed: {steps.failed}.")
            if steps.done:
                return
            if steps.waits and steps.waits != waited:
                waited = steps.waits
                self._report(f"waiting: {waited}")
            if self._clock() > until:
                raise ThroughlineError(
                    f"{revisions.usecase} is not deployed within {self._ready_s:g} s ({waited or 'objects change'}): "
                    "what served goes on; correct the cause and deploy again."
                )
            if not steps.actions:
                self._sleep(POLL_S)

    def observe(self, usecase: str) -> tuple[Served, ...]:
        """As `Target.observe`."""
        return served(self._client.objects(usecase_name(self._cluster, usecase)))
