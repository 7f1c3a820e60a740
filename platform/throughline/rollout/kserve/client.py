"""Requests of the KServe target to the API server, by server-side apply.

Owns: which objects belong to a use case, the messages of refusals. Does not own: credentials (a kubeconfig, or the
service account of a Pod).
"""

from __future__ import annotations

import json
from typing import Any

from throughline.foundation.errors import ThroughlineError
from throughline.rollout.kserve.cluster import Cluster, predictor_name
from throughline.rollout.kserve.manifests import USECASE
from throughline.rollout.kserve.reading import Objects

MANAGER = "throughline"
_PATHS = {
    "InferenceService": "/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices",
    "HTTPRoute": "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
}


class KubernetesClient:
    """`Client` of `target.py` over the official library. `kubeconfig`: a file; None: that of the environment or Pod."""

    def __init__(self, cluster: Cluster, kubeconfig: str | None = None) -> None:
        from kubernetes import client, config  # postpones kubernetes (0.6 s)

        self._cluster = cluster
        try:
            config.load_config(config_file=kubeconfig) if kubeconfig else config.load_config()
        except config.ConfigException as error:
            raise ThroughlineError(f"No cluster can be reached ({error}): set KUBECONFIG.") from error
        self._api, self._refused = client.ApiClient(), client.ApiException

    def objects(self, usecase: str) -> Objects:
        labelled = {"labelSelector": f"{USECASE}={usecase}"}
        services = {one["metadata"]["name"]: one for one in self._list("InferenceService", labelled)}
        deployments = {one["metadata"]["name"]: one for one in self._list("Deployment", {})}
        pods = self._list("Pod", {"labelSelector": "serving.kserve.io/inferenceservice"}) if services else []
        (route,) = self._list("HTTPRoute", {"fieldSelector": f"metadata.name={usecase}"}) or (None,)
        own = {predictor_name(name) for name in services}
        return Objects(
            services=services,
            deployments={name: one for name, one in deployments.items() if name in own},
            pods=tuple(
                one for one in pods if one["metadata"]["labels"]["serving.kserve.io/inferenceservice"] in services
            ),
            route=route,
        )

    def put(self, content: dict[str, Any]) -> None:
        path = f"{self._path(content['kind'])}/{content['metadata']['name']}"
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        self._call("PATCH", path, query, content, "application/apply-patch+yaml")

    def delete(self, content: dict[str, Any]) -> None:
        self._call("DELETE", f"{self._path(content['kind'])}/{content['metadata']['name']}", {}, missing_is_fine=True)

    def _list(self, kind: str, query: dict[str, str]) -> list[dict[str, Any]]:
        return self._call("GET", self._path(kind), query)["items"]

    def _path(self, kind: str) -> str:
        return _PATHS[kind].format(namespace=self._cluster.namespace)

    def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: dict[str, Any] | None = None,
        content_type: str = "application/json",
        missing_is_fine: bool = False,
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            answer = self._api.call_api(
                path, method, query_params=list(query.items()), header_params=headers, body=body,
                auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
            )  # fmt: skip
            return json.loads(answer.data)
        except self._refused as error:
            if missing_is_fine and error.status == 404:
                return {}
            raise ThroughlineError(f"The API server refused {method} {path}: {_reason(error)}.") from error
        except OSError as error:
            raise ThroughlineError(f"The API server does not answer ({error}): see the kubeconfig.") from error


def _reason(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"]).rstrip(".")
    except (TypeError, ValueError, KeyError):
        return f"HTTP {error.status} {error.reason}"
