"""What is to be done next to have a set of revisions serve in Standard mode: pure.

Owns: the order. Does not own: the objects (`manifests.py`), what the cluster's objects mean (`reading.py`).

Servers first, then weights, then clean-up: a Service is named by the route only when all its Pods are ready, and is
deleted only when no route that a Gateway carries out names it. (A Gateway answers 500 for a backend that is not there;
KServe's own promotion has such a gap.) A plan is made anew from what the cluster has: after a crash at any point the
next one goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from throughline.foundation.errors import ThroughlineError
from throughline.records import RevisionSet
from throughline.rollout.kserve.cluster import CAPABILITIES, Cluster, predictor_name
from throughline.rollout.kserve.manifests import inference_service, route
from throughline.rollout.kserve.reading import Objects, carried_out, going, readiness, routed


@dataclass(frozen=True)
class Action:
    """One request to the API server. `put`: create the object or replace its spec, by server-side apply."""

    kind: Literal["put", "delete"]
    object: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.kind} {self.object['kind']} {self.object['metadata']['name']}"


@dataclass(frozen=True)
class Steps:
    """`actions`: to be done now, in order; then look again. `waits`: why nothing more can be done yet. `failed`: why a
    server will not become ready; then `actions` remove what serves nothing. Without any of them the set serves."""

    actions: tuple[Action, ...] = ()
    waits: str = ""
    failed: str = ""

    @property
    def done(self) -> bool:
        return not (self.actions or self.waits or self.failed)


def next_steps(cluster: Cluster, wanted: RevisionSet, objects: Objects) -> Steps:
    """Towards `wanted`, from what the cluster has for its use case.

    Raises `ThroughlineError` for a set that this target cannot carry.
    """
    require_carried(cluster, wanted)
    services = [inference_service(cluster, one) for one in wanted.revisions]
    named = routed(objects.route)
    other = [one for one in services if not _holds(_spec(objects, one), one["spec"])]
    other = [one for one in other if not going(objects.services.get(one["metadata"]["name"]))]
    if other:  # not there, or of another image or size
        return Steps(tuple(Action("put", one) for one in other))
    found = [readiness(objects, one) for one in services]
    failures = [one.reason for one in found if one.state == "failed"]
    if failures:
        # what takes requests stays, whatever its Pods report
        idle = [one for one in services if predictor_name(one["metadata"]["name"]) not in named]
        return Steps(tuple(Action("delete", one) for one in idle), failed="; ".join(failures))
    waits = [one.reason for one in found if one.state == "waiting"]
    if waits:
        return Steps(waits="; ".join(waits))
    goal = route(cluster, wanted)
    if objects.route is None or not _same(objects.route, goal):
        return Steps((Action("put", goal),))
    if not carried_out(objects.route):
        return Steps(waits=f"the Gateway {cluster.gateway} does not carry out the route {goal['metadata']['name']} yet")
    kept = {one["metadata"]["name"] for one in services}
    left = [one for name, one in sorted(objects.services.items()) if name not in kept]
    return Steps(
        tuple(Action("delete", one) for one in left if not going(one)),
        waits="; ".join(f"{one['metadata']['name']} is not gone" for one in left),
    )


def require_carried(cluster: Cluster, wanted: RevisionSet) -> None:
    """Raises `ThroughlineError` naming what the set needs and the cluster's mode lacks."""
    can = CAPABILITIES[cluster.mode]
    lacks = [
        name
        for name, needed, has in (
            ("sticky", wanted.sticky is not None, can.sticky),
            ("mirror", any(one.role == "shadow" for one in wanted.revisions), can.mirror),
        )
        if needed and not has
    ]
    if lacks:
        raise ThroughlineError(
            f"{wanted.usecase} is not deployed: KServe's mode {cluster.word} cannot carry {', '.join(lacks)}; declare "
            "another strategy."
        )


def _spec(objects: Objects, service: Mapping[str, Any]) -> Any:
    found = objects.services.get(service["metadata"]["name"])
    return found["spec"] if found else None


def _same(found: Mapping[str, Any], goal: Mapping[str, Any]) -> bool:
    """Whether `found` has all that `goal` has; the API server adds defaults."""
    annotations = found["metadata"].get("annotations", {})
    return goal["metadata"]["annotations"].items() <= annotations.items() and _holds(found["spec"], goal["spec"])


def _holds(found: Any, goal: Any) -> bool:
    if isinstance(goal, dict):
        return isinstance(found, dict) and all(_holds(found.get(key), value) for key, value in goal.items())
    if isinstance(goal, list):
        return isinstance(found, list) and len(found) == len(goal) and all(map(_holds, found, goal))
    return found == goal
