"""A fake of a cluster with KServe in Standard mode: objects in memory, and controllers that take a few looks to act.

It behaves as the released controllers were observed to: a Deployment of its own per InferenceService, ready some time
later or never; a Gateway that carries out a route some time after it was put; garbage that is collected later.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

from throughline.rollout.kserve.cluster import predictor_name
from throughline.rollout.kserve.reading import Objects, routed

SLOW = 3  # looks until a controller has acted


class FakeCluster:
    """`Client` of `rollout/kserve/target.py`. `broken`: revisions whose container ends at once."""

    def __init__(self, broken: frozenset[str] = frozenset()) -> None:
        self.broken = broken
        self.services: dict[str, Any] = {}
        self.deployments: dict[str, Any] = {}
        self.route: Any = None
        self.carried: set[str] = set()  # Services that the Gateway sends requests to
        self.log: list[str] = []
        self._uids = itertools.count(1)
        self._ages: dict[str, int] = {}

    def objects(self, usecase: str) -> Objects:
        self._tick()
        pods = tuple(pod for name in self.services for pod in self._pods(name))
        return copy.deepcopy(Objects(self.services, self.deployments, pods, self.route))

    def put(self, content: dict[str, Any]) -> None:
        name = content["metadata"]["name"]
        self.log.append(f"put {content['kind']} {name}")
        held = self.route if content["kind"] == "HTTPRoute" else self.services.get(name)
        made = copy.deepcopy(content)
        made["metadata"] |= {"generation": held["metadata"]["generation"] + 1 if held else 1}
        made["metadata"] |= {"uid": held["metadata"]["uid"] if held else str(next(self._uids))}
        if content["kind"] == "HTTPRoute":
            made["status"] = held.get("status", {}) if held else {}
            self.route, self._ages["route"] = made, 0
        else:
            self.services[name], self._ages[name] = made, 0

    def delete(self, content: dict[str, Any]) -> None:
        name = content["metadata"]["name"]
        self.log.append(f"delete {content['kind']} {name}")
        if name in self.services:
            self.services[name]["metadata"]["deletionTimestamp"] = "now"
            self._ages[name] = 0

    def ready(self, service: str) -> bool:
        """Whether the Service (NAME-predictor) has a Pod that answers."""
        return self.deployments.get(service, {}).get("status", {}).get("availableReplicas", 0) > 0

    def _tick(self) -> None:
        for name, service in list(self.services.items()):
            self._ages[name] += 1
            made = predictor_name(name)
            if "deletionTimestamp" in service["metadata"]:
                if self._ages[name] >= SLOW:
                    del self.services[name]
                    self.deployments.pop(made, None)
            elif self._ages[name] == 1:
                replicas = service["spec"]["predictor"]["minReplicas"]
                self.deployments[made] = {
                    "metadata": {
                        "name": made,
                        "generation": service["metadata"]["generation"],
                        "ownerReferences": [{"uid": service["metadata"]["uid"]}],
                    },
                    "spec": {"replicas": replicas, "template": {"spec": copy.deepcopy(service["spec"]["predictor"])}},
                    "status": self.deployments.get(made, {}).get("status", {}),
                }
            elif self._ages[name] >= SLOW and not self._broken(name):
                counts = {
                    f"{kind}Replicas": service["spec"]["predictor"]["minReplicas"] for kind in ("updated", "available")
                }
                generation = self.deployments[made]["metadata"]["generation"]
                replicas = service["spec"]["predictor"]["minReplicas"]
                self.deployments[made]["status"] = {"observedGeneration": generation, "replicas": replicas, **counts}
        if self.route is not None:
            self._ages["route"] += 1
            if self._ages["route"] >= SLOW:
                self.carried = routed(self.route)
                generation = self.route["metadata"]["generation"]
                conditions = [
                    {"type": kind, "status": "True", "observedGeneration": generation}
                    for kind in ("Accepted", "ResolvedRefs")
                ]
                self.route["status"] = {"parents": [{"conditions": conditions}]}

    def _pods(self, name: str) -> list[Any]:
        labels = {"serving.kserve.io/inferenceservice": name}
        status: dict[str, Any] = {"name": "kserve-container", "restartCount": 0, "state": {"running": {}}}
        if self._broken(name) and self._ages[name] >= SLOW:
            ended = {"exitCode": 1, "reason": "Error", "message": "Model late/2 is refused: changed"}
            status |= {
                "restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": ended},
            }
        return [{"metadata": {"name": f"{name}-pod", "labels": labels}, "status": {"containerStatuses": [status]}}]

    def _broken(self, name: str) -> bool:
        return self.services[name]["metadata"]["annotations"]["throughline/revision"] in self.broken
