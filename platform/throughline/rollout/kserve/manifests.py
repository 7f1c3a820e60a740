"""A set of revisions as objects of Kubernetes: pure.

Owns: InferenceServices, the HTTPRoute, Knative's share. Does not own: their order (`steps.py`), names (`cluster.py`).

An InferenceService is the same at every step of a rollout: a changed label, share or role in its template would start
its Pods anew. Roles stand in an annotation of the route, shares in its weights.
"""

from __future__ import annotations

import json
from typing import Any

from throughline.foundation.errors import ThroughlineError
from throughline.records import Revision, RevisionSet
from throughline.rollout.kserve.cluster import (
    GATEWAY_API,
    Cluster,
    host,
    predictor_name,
    service_name,
    usecase_name,
)

KSERVE_API = "serving.kserve.io/v1beta1"
MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
REVISION, USECASE, ROLES = "throughline/revision", "throughline/usecase", "throughline/roles"
REVISION_HEADER = "X-Throughline-Revision"
HOME, BUNDLES = "/var/lib/throughline", "deployments"
WHOLE = 10_000  # of weights: a hundredth of a percent
_USER = 10001


def inference_service(cluster: Cluster, revision: Revision) -> dict[str, Any]:
    """In Standard mode: the server of one revision, which mounts its files by version and digest."""
    return _inference_service(cluster, service_name(cluster, revision), revision)


def route(cluster: Cluster, revisions: RevisionSet) -> dict[str, Any]:
    """The HTTPRoute of a use case: testers reach a revision by header, all others by weight; shadows get copies.

    The longest match wins in the Gateway API, and among equal ones the one with more headers.
    """
    namespace, gateway = cluster.gateway.split("/")
    answering = [one for one in revisions.revisions if one.role != "shadow"]
    parts = weights([one.weight for one in answering])
    shared = {
        "backendRefs": [{**_backend(cluster, one), "weight": part} for one, part in zip(answering, parts, strict=True)]
    }
    mirrors = [_mirror(cluster, one) for one in revisions.revisions if one.role == "shadow" and one.weight > 0]
    everything = {"path": {"type": "PathPrefix", "value": "/"}}
    return {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": {
            "name": usecase_name(cluster, revisions.usecase),
            "namespace": cluster.namespace,
            "labels": {USECASE: usecase_name(cluster, revisions.usecase)},
            "annotations": {ROLES: json.dumps({one.revision: one.role for one in revisions.revisions}, sort_keys=True)},
        },
        "spec": {
            "parentRefs": [
                {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": namespace, "name": gateway}
            ],
            "hostnames": [host(cluster, revisions.usecase)],
            "rules": [
                *(_for_testers(cluster, one) for one in revisions.revisions),
                {"matches": [everything], **({"filters": mirrors} if mirrors else {}), **shared},
            ],
        },
    }


def knative_service(cluster: Cluster, revisions: RevisionSet) -> dict[str, Any]:
    """In Knative mode: the one InferenceService of a use case, whose newest template gets the share of the canary.

    Knative keeps what served before; with a share of 0 it has all traffic, without one the newest has.
    """
    canary = next((one for one in revisions.revisions if one.role == "canary"), None)
    if any(one.role == "shadow" for one in revisions.revisions) or len(revisions.revisions) > 2:
        raise ThroughlineError(f"{revisions.usecase} is not deployed: Knative carries a stable and a canary, no more.")
    made = _inference_service(cluster, usecase_name(cluster, revisions.usecase), canary or revisions.stable)
    if canary is not None:
        made["spec"]["predictor"]["canaryTrafficPercent"] = percent(canary)
    return made


def percent(canary: Revision) -> int:
    """A share in whole percent, as Knative takes it. Raises `ThroughlineError` for one that is none."""
    share = canary.weight * 100
    if abs(share - round(share)) > 1e-9:
        raise ThroughlineError(f"A share of {share:g} % is not deployed: Knative takes whole percents.")
    return round(share)


def weights(shares: list[float]) -> list[int]:
    """Shares that sum to 1 as weights that sum to `WHOLE`, each close to its share; 0 only for a share of 0."""
    exact = [share * WHOLE for share in shares]
    given = [max(int(part), 1) if share > 0 else 0 for part, share in zip(exact, shares, strict=True)]
    by_remainder = sorted(range(len(given)), key=lambda place: given[place] - exact[place])
    for place in by_remainder[: max(WHOLE - sum(given), 0)]:
        given[place] += 1
    while sum(given) > WHOLE:
        given[given.index(max(given))] -= 1
    return given


def bundle_path(revision: Revision) -> str:
    """Where the files of a revision are in the home: named by version and digest, so that they never change."""
    return f"{BUNDLES}/{revision.usecase}/v{revision.version}-{revision.sha256}"


def _inference_service(cluster: Cluster, name: str, revision: Revision) -> dict[str, Any]:
    shadow = revision.role == "shadow"
    return {
        "apiVersion": KSERVE_API,
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": {USECASE: usecase_name(cluster, revision.usecase)},
            "annotations": {
                MODE: cluster.word,
                AUTOSCALER: "none",  # replicas are fixed; an autoscaler would own their number
                REVISION: revision.revision,
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": cluster.replicas,
                "maxReplicas": cluster.replicas,
                "serviceAccountName": cluster.service_account,
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 30,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": _USER,
                    "runAsGroup": _USER,
                    "fsGroup": _USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [_container(cluster, revision, shadow)],
                "volumes": [
                    {"name": "home", "persistentVolumeClaim": {"claimName": cluster.home}},
                    {"name": "spool", "emptyDir": {"sizeLimit": "2Gi"}},
                    {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
                ],
            }
        },
    }


def _container(cluster: Cluster, revision: Revision, shadow: bool) -> dict[str, Any]:
    secret = {"name": cluster.token, "key": "token"}
    env = [{"name": "THROUGHLINE_TOKEN", "valueFrom": {"secretKeyRef": secret}}]
    if shadow:  # a mirrored copy has the headers of its original, which was production
        env.append({"name": "THROUGHLINE_TRAFFIC", "value": "shadow"})
    resources = {"cpu": cluster.cpu, "memory": cluster.memory}
    serving = f"{HOME}/serving"
    return {
        "name": "kserve-container",
        "image": cluster.image,
        "command": ["python", "-m", "serving"],
        "envFrom": [{"configMapRef": {"name": cluster.settings}}],
        "env": env,
        "ports": [  # the first is the one that KServe's Service leads to
            {"name": "http1", "containerPort": 8080, "protocol": "TCP"},
            {"name": "grpc", "containerPort": 8081, "protocol": "TCP"},
        ],
        # explicit: the webhook's defaults differ between kinds of containers, and a changed template restarts Pods
        "resources": {"requests": resources, "limits": resources},
        "startupProbe": _probe("live", periodSeconds=2, failureThreshold=60),
        "readinessProbe": _probe(f"models/{revision.usecase}", periodSeconds=5),  # this model, not the server alone
        "livenessProbe": _probe("live", periodSeconds=10, failureThreshold=6),
        "terminationMessagePolicy": "FallbackToLogsOnError",  # the reason of a failed start is read from the Pod
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {
                "name": "home",
                "mountPath": f"{serving}/{revision.usecase}",
                "subPath": bundle_path(revision),
                "readOnly": True,
            },
            {"name": "spool", "mountPath": f"{serving}/spool"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _probe(what: str, **times: int) -> dict[str, Any]:
    path = f"/v2/{what}/ready" if what.startswith("models/") else f"/v2/health/{what}"
    return {"httpGet": {"path": path, "port": 8080}, **times}


def _backend(cluster: Cluster, revision: Revision) -> dict[str, Any]:
    name = predictor_name(service_name(cluster, revision))
    return {"group": "", "kind": "Service", "name": name, "port": 80}


def _for_testers(cluster: Cluster, revision: Revision) -> dict[str, Any]:
    header = {"type": "Exact", "name": REVISION_HEADER, "value": revision.revision}
    match = {"path": {"type": "PathPrefix", "value": "/"}, "headers": [header]}
    return {"matches": [match], "backendRefs": [{**_backend(cluster, revision), "weight": 1}]}


def _mirror(cluster: Cluster, revision: Revision) -> dict[str, Any]:
    fraction = {"numerator": weights([revision.weight, 1 - revision.weight])[0], "denominator": WHOLE}
    return {"type": "RequestMirror", "requestMirror": {"backendRef": _backend(cluster, revision), "fraction": fraction}}
