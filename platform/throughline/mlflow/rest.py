"""MLflow over REST, because its own client takes 6 s of a core to import: requests, and the pages of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.security.calls import client_of
from throughline.foundation.settings import Settings

_TIMEOUT_S = 30


def get(settings: Settings, path: str, /, **parameters: Any) -> dict[str, Any] | None:
    """The response of this home's MLflow; None for what it does not have. Raises when it is down, or refuses."""
    return _request(settings, "GET", path, params=parameters)


def post(settings: Settings, path: str, /, **content: Any) -> None:
    """Change something in MLflow. Raises when it was not changed."""
    if _request(settings, "POST", path, json=content) is None:
        raise ThroughlineError(f"MLflow at {settings.url('mlflow')} does not have what {path} is to change.")


def model_versions(settings: Settings, name: str, where: str | None = None) -> Iterator[dict[str, Any]]:
    """Every version of a model as MLflow describes it; `where`: a condition in MLflow's filter language."""
    condition = f"name = '{name}'" if where is None else f"name = '{name}' and {where}"
    page = ""
    while True:
        content = get(settings, "model-versions/search", filter=condition, max_results=1000, page_token=page)
        if content is None:  # a failure, not an empty search
            raise unreachable(settings, "404 for a search")
        yield from content.get("model_versions", [])
        page = content.get("next_page_token", "")
        if not page:
            return


def runs(settings: Settings, experiment: str) -> Iterator[dict[str, Any]]:
    """Every run of an experiment as MLflow describes it; none of an experiment that is not there."""
    found = get(settings, "experiments/get-by-name", experiment_name=experiment)
    if found is None:
        return
    search: dict[str, Any] = {"experiment_ids": [found["experiment"]["experiment_id"]], "max_results": 1000}
    while True:
        content = _request(settings, "POST", "runs/search", json=search)
        if content is None:  # a failure, not an empty search
            raise unreachable(settings, "404 for a search")
        yield from content.get("runs", [])
        if not content.get("next_page_token"):
            return
        search["page_token"] = content["next_page_token"]


def aliases(settings: Settings, name: str) -> dict[str, int]:
    """Alias -> version of a model; none of a model that is not there."""
    model = get(settings, "registered-models/get", name=name) or {}
    return {one["alias"]: int(one["version"]) for one in model.get("registered_model", {}).get("aliases", [])}


def tags_in(described: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version or run in a response."""
    return {tag["key"]: tag["value"] for tag in described.get("tags", [])}


def unreachable(settings: Settings, why: object) -> ThroughlineError:
    """The error of a server that does not respond, or not as MLflow does."""
    return ThroughlineError(f"MLflow does not answer at {settings.url('mlflow')} ({why}): run `throughline up`.")


def _request(settings: Settings, method: str, path: str, **content: Any) -> dict[str, Any] | None:
    uri = settings.url("mlflow")
    try:
        with client_of(settings, "mlflow", _TIMEOUT_S) as client:
            response = client.request(method, f"/api/2.0/mlflow/{path}", **content)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_client_error:
            raise ThroughlineError(f"MLflow at {uri} refuses {path}: {response.json()['message']}")
        return response.raise_for_status().json()
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise unreachable(settings, error) from error
