"""Objects of the cluster as what serves, what is ready and why something is not: pure.

Owns: which fields are evidence. Does not own: fetching them. Of an InferenceService's status nothing is taken for
readiness: `observedGeneration` is the Deployment's, `Ready` stays True while an update fails, and `modelStatus` of a
canary is never filled. The Deployment reports what runs, the Pods why not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from throughline.rollout.kserve.cluster import predictor_name
from throughline.rollout.kserve.manifests import REVISION, ROLES
from throughline.rollout.target import Served

Object = Mapping[str, Any]

FAILED_STARTS = 3  # then a container that does not start is called failed
_FINAL_WAITS = {"InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}


@dataclass(frozen=True)
class Objects:
    """What the cluster has for one use case, each by name; Pods as a list."""

    services: Mapping[str, Object]  # InferenceServices
    deployments: Mapping[str, Object]
    pods: tuple[Object, ...] = ()
    route: Object | None = None


@dataclass(frozen=True)
class Readiness:
    """`reason`: one line; of `waiting` what it waits for, of `failed` why it will not become ready."""

    state: Literal["ready", "waiting", "failed"]
    reason: str = ""


def readiness(objects: Objects, wanted: Object) -> Readiness:
    """Whether the Pods of the InferenceService `wanted` run its template, all of them."""
    name = wanted["metadata"]["name"]
    service = objects.services.get(name)
    if service is None:
        return Readiness("waiting", f"{name} is not created")
    if going(service):
        return Readiness("waiting", f"an earlier {name} is not gone")
    if invalid := _invalid_spec(service):
        return Readiness("failed", f"{name}: {invalid}")
    deployment = objects.deployments.get(predictor_name(name))
    if deployment is None:
        return Readiness("waiting", f"KServe has made no Deployment of {name}")
    if not _owned(deployment, service):
        return Readiness("waiting", f"the Deployment of an earlier {name} is not gone")
    if failure := pod_failure(_pods_of(objects, name)):
        return Readiness("failed", f"{name}: {failure}")
    replicas, status = deployment["spec"].get("replicas", 1), deployment.get("status", {})
    current = status.get("observedGeneration") == deployment["metadata"]["generation"]
    counts = {kind: status.get(f"{kind}Replicas", 0) for kind in ("updated", "available")}
    if not _runs(deployment, wanted):
        return Readiness("waiting", f"{name} has another template")
    if not current or status.get("replicas", 0) != replicas or set(counts.values()) != {replicas} or replicas < 1:
        waits = pod_waits(_pods_of(objects, name))
        shown = f"{counts['available']} of {replicas} Pods of {name} are ready"
        return Readiness("waiting", f"{shown}{f': {waits}' if waits else ''}")
    return Readiness("ready")


def going(content: Object | None) -> bool:
    """Whether an object is there and being deleted."""
    return content is not None and "deletionTimestamp" in content["metadata"]


def served(objects: Objects) -> tuple[Served, ...]:
    """What the route sends where, by weight; empty when there is no route or the Gateway does not carry it out."""
    if objects.route is None or not carried_out(objects.route):
        return ()
    roles = json.loads(objects.route["metadata"].get("annotations", {}).get(ROLES, "{}"))
    by_service = {
        predictor_name(name): one["metadata"].get("annotations", {}).get(REVISION)
        for name, one in objects.services.items()
    }
    shared = objects.route["spec"]["rules"][-1]
    backends = [(one["name"], one.get("weight", 1)) for one in shared["backendRefs"]]
    total = sum(weight for _, weight in backends) or 1
    shares = [(name, weight / total) for name, weight in backends]
    for each in shared.get("filters", ()):
        if each["type"] == "RequestMirror":
            fraction = each["requestMirror"]["fraction"]
            name = each["requestMirror"]["backendRef"]["name"]
            shares.append((name, fraction["numerator"] / fraction["denominator"]))
    return tuple(
        Served(revision=revision, role=roles.get(revision, "stable"), weight=weight)
        for name, weight in shares
        if (revision := by_service.get(name)) is not None
    )


def knative_served(service: Object, revisions: Mapping[str, Object]) -> tuple[Served, ...]:
    """What Knative sends where; empty while the newest template is not ready. `revisions`: Knative's, by name; each has
    the annotations of the template that it was made from."""
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    latest, is_split = predictor.get("latestCreatedRevision"), "canaryTrafficPercent" in service["spec"]["predictor"]
    if latest is None or latest != predictor.get("latestReadyRevision"):
        return ()
    return tuple(
        Served(
            revision=revisions[name]["metadata"]["annotations"][REVISION],
            role="canary" if is_split and name == latest else "stable",
            weight=share["percent"] / 100,
        )
        for share in predictor.get("traffic", ())
        if (name := share.get("revisionName")) in revisions and ("percent" in share)
    )


def carried_out(route: Object) -> bool:
    """Whether every Gateway has accepted this very generation of the route and resolved its backends."""
    parents = route.get("status", {}).get("parents", [])
    generation = route["metadata"].get("generation")

    def holds(parent: Object, kind: str) -> bool:
        found = [one for one in parent.get("conditions", ()) if one["type"] == kind]
        return any(one["status"] == "True" and one.get("observedGeneration") == generation for one in found)

    return bool(parents) and all(holds(one, kind) for one in parents for kind in ("Accepted", "ResolvedRefs"))


def routed(route: Object | None) -> set[str]:
    """The Services that a route names, in whatever role; empty without one."""
    found = set()
    for rule in route["spec"]["rules"] if route else ():
        found.update(one["name"] for one in rule.get("backendRefs", ()))
        found.update(
            one["requestMirror"]["backendRef"]["name"]
            for one in rule.get("filters", ())
            if one["type"] == "RequestMirror"
        )
    return found


def pod_failure(pods: Iterable[Object]) -> str | None:
    """Why Pods will not start by themselves: the container, its reason, exit code and last words."""
    for pod in pods:
        for status in _containers(pod):
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _FINAL_WAITS:
                return f"{status['name']} {waiting['reason']} ({_words(waiting.get('message'))})"
            ended = _ended(status)
            if ended and ended.get("exitCode") and status.get("restartCount", 0) >= FAILED_STARTS - 1:
                times, code = status["restartCount"] + 1, ended["exitCode"]
                last = f"{status['name']} ended {times} times, {ended.get('reason', 'Error')} with exit code {code}"
                words = _words(ended.get("message"))
                return f"{last} ({words})" if words else last
    return None


def pod_waits(pods: Iterable[Object]) -> str:
    """What Pods that may still become ready wait for; empty when they give no reason."""
    for pod in pods:
        for condition in pod.get("status", {}).get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return _words(f"{condition.get('reason')}: {condition.get('message')}")
        for status in _containers(pod):
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                return f"{status['name']} {waiting['reason']} ({_words(waiting.get('message'))})"
            if status.get("started") and not status.get("ready") and "running" in status["state"]:
                return f"{pod['metadata']['name']} runs and does not answer as ready: see its log"
    return ""


def _pods_of(objects: Objects, name: str) -> list[Object]:
    return [
        pod
        for pod in objects.pods
        if pod["metadata"].get("labels", {}).get("serving.kserve.io/inferenceservice") == name and not going(pod)
    ]


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def _ended(status: Object) -> Object | None:
    return status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated")


def _invalid_spec(service: Object) -> str | None:
    model = service.get("status", {}).get("modelStatus", {})
    if model.get("transitionStatus") != "InvalidSpec":
        return None
    failure = model.get("lastFailureInfo", {})
    return f"{failure.get('reason', 'InvalidSpec')} ({_words(failure.get('message'))})"


def _owned(deployment: Object, service: Object) -> bool:
    owners = deployment["metadata"].get("ownerReferences", ())
    return any(owner.get("uid") == service["metadata"].get("uid") for owner in owners)


def _runs(deployment: Object, wanted: Object) -> bool:
    """Whether the Deployment's template has the container of `wanted`: image and mounted files."""
    (container,) = wanted["spec"]["predictor"]["containers"]
    found = [one for one in deployment["spec"]["template"]["spec"]["containers"] if one["name"] == container["name"]]
    return len(found) == 1 and all(
        _without_defaults(found[0].get(part), container[part]) == container[part] for part in ("image", "volumeMounts")
    )


def _without_defaults(found: Any, wanted: Any) -> Any:
    """`found` without the mounts and keys that webhooks and the API server added."""
    if not isinstance(wanted, list) or not isinstance(found, list):
        return found
    return [{key: one.get(key) for key in two} for one, two in zip(found, wanted, strict=False)]


def _words(text: object) -> str:
    """A message on one line, its end when it is long: there are the reasons."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= 300 else f"...{line[-297:]}"
