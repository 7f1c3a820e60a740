"""Where revisions serve in a cluster, and what its mode can carry.

Owns: names of objects, the detection of the mode, its capabilities. Does not own: the objects (`manifests.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from throughline.foundation.errors import ThroughlineError
from throughline.records import Revision
from throughline.rollout.target import Capabilities

Mode = Literal["standard", "knative"]

GATEWAY_API, KNATIVE_API = "gateway.networking.k8s.io/v1", "serving.knative.dev/v1"
# What the ConfigMap of each release calls the modes; the annotation of an InferenceService takes the same word.
_WORDS: dict[str, Mode] = {
    "Standard": "standard",
    "RawDeployment": "standard",
    "Knative": "knative",
    "Serverless": "knative",
}
# NAME-predictor-NAMESPACE is a label of a host name, NAME-predictor that of a Service.
_LABEL, _PREDICTOR = 63, "-predictor"

# Sticky by the value of a request field: no route can see that. Knative has two revisions at most, and no copies.
CAPABILITIES: dict[Mode, Capabilities] = {
    "standard": Capabilities(weights=True, sticky=False, mirror=True),
    "knative": Capabilities(weights=True, sticky=False, mirror=False),
}


@dataclass(frozen=True)
class Cluster:
    """Settings of a KServe target. `word`: what this release of KServe calls the mode."""

    namespace: str
    image: str  # by digest: a tag may change between two Pods of one revision
    gateway: str  # NAMESPACE/NAME of the Gateway
    domain: str  # of the host under which a use case is called: USECASE.DOMAIN
    mode: Mode = "standard"
    word: str = "Standard"
    cpu: str = "1"
    memory: str = "1Gi"
    replicas: int = 1
    service_account: str = "model-server"
    settings: str = "throughline-settings"  # ConfigMap with THROUGHLINE_*
    token: str = "throughline-token"  # Secret with the key `token`
    home: str = "throughline-home"  # PersistentVolumeClaim of the home

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", self.image):
            raise ThroughlineError(f"Image {self.image!r} is not named by its digest: give NAME@sha256:DIGEST.")
        if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", self.gateway):
            raise ThroughlineError(f"{self.gateway!r} is no Gateway: give NAMESPACE/NAME.")


def detect(config: Mapping[str, Any], served_apis: Collection[str]) -> tuple[Mode, str]:
    """The mode that a cluster's KServe deploys in by default, and its own word for it.

    `config`: the ConfigMap `inferenceservice-config` in KServe's namespace; `served_apis`: GROUP/VERSION of what the
    API server has. Raises `ThroughlineError` when the mode is none that can carry a rollout.
    """
    try:
        word = str(json.loads(config["data"]["deploy"])["defaultDeploymentMode"])
    except (KeyError, TypeError, ValueError) as error:
        raise ThroughlineError(
            "KServe's inferenceservice-config names no defaultDeploymentMode: install KServe 0.15 or newer."
        ) from error
    mode = _WORDS.get(word)
    if mode is None:
        raise ThroughlineError(
            f"KServe deploys in the mode {word}, which is not supported: set one of {', '.join(_WORDS)} in its "
            "inferenceservice-config."
        )
    needed = GATEWAY_API if mode == "standard" else KNATIVE_API
    if needed not in served_apis:
        what = "weights are in an HTTPRoute" if mode == "standard" else "Knative splits the traffic"
        raise ThroughlineError(f"The cluster has no {needed}, but in KServe's mode {word} {what}: install it.")
    return mode, word


def service_name(cluster: Cluster, revision: Revision) -> str:
    """The InferenceService of a revision, always the same. As a shadow it is a server of its own: what it answers is
    counted otherwise, and a server that is changed for that starts anew."""
    name = f"{_dns(revision.usecase)}-{_dns(revision.revision)}{'-shadow' if revision.role == 'shadow' else ''}"
    return _short(name, _LABEL - len(_PREDICTOR) - 1 - len(cluster.namespace))


def usecase_name(cluster: Cluster, usecase: str) -> str:
    """The route of a use case and the first label of its host; in Knative mode its InferenceService."""
    return _short(_dns(usecase), _LABEL - len(_PREDICTOR) - 1 - len(cluster.namespace))


def predictor_name(name: str) -> str:
    """The Deployment and the Service that KServe makes for an InferenceService."""
    return name + _PREDICTOR


def host(cluster: Cluster, usecase: str) -> str:
    """Under which the use case is called."""
    return f"{usecase_name(cluster, usecase)}.{cluster.domain}"


def _dns(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _short(name: str, limit: int) -> str:
    if len(name) <= limit and name[:1].isalpha():
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"m-{name[: limit - len(digest) - 3].strip('-')}-{digest}"
