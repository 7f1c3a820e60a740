"""MLflow asked over REST: its own client takes 6 s of a core to import.

Owns: one question, one change, and the pages of a search. Does not own: what is asked, and what follows from an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from throughline.foundation.errors import ThroughlineError
from throughline.foundation.settings import Settings

_TIMEOUT_S = 30


def ask(settings: Settings, question: str, **parameters: Any) -> dict[str, Any] | None:
    """The answer of this home's MLflow; None for what it does not have. Raises when it does not answer, or refuses."""
    return _call(settings, "GET", question, params=parameters)


def tell(settings: Settings, change: str, **content: Any) -> None:
    """Have MLflow change something. Raises when it does not."""
    if _call(settings, "POST", change, json=content) is None:
        raise ThroughlineError(f"MLflow at {settings.url('mlflow')} does not have what {change} is to change.")


def model_versions(settings: Settings, name: str, where: str | None = None) -> Iterator[dict[str, Any]]:
    """Every version of a model as MLflow describes it; `where`: a condition in MLflow's words. A search that is not
    found is a failure, not an empty one."""
    wanted = f"name = '{name}'" if where is None else f"name = '{name}' and {where}"
    page = ""
    while True:
        question = {"filter": wanted, "max_results": 1000, "page_token": page}
        content = ask(settings, "model-versions/search", **question)
        if content is None:
            raise silent(settings, "404 for a search")
        yield from content.get("model_versions", [])
        page = content.get("next_page_token", "")
        if not page:
            return


def aliases(settings: Settings, name: str) -> dict[str, int]:
    """Alias -> version of a model; none of a model that is not there."""
    model = ask(settings, "registered-models/get", name=name) or {}
    return {one["alias"]: int(one["version"]) for one in model.get("registered_model", {}).get("aliases", [])}


def tags_in(described: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version or run in an answer."""
    return {tag["key"]: tag["value"] for tag in described.get("tags", [])}


def silent(settings: Settings, why: object) -> ThroughlineError:
    """What to raise when MLflow does not answer as it should."""
    return ThroughlineError(
        f"MLflow does not answer at {settings.url('mlflow')} ({why}): start it with `throughline up`."
    )


def _call(settings: Settings, method: str, what: str, **content: Any) -> dict[str, Any] | None:
    import httpx

    uri = settings.url("mlflow")
    try:
        answer = httpx.request(method, f"{uri}/api/2.0/mlflow/{what}", timeout=_TIMEOUT_S, **content)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.is_client_error:
            raise ThroughlineError(f"MLflow at {uri} refuses {what}: {answer.json()['message']}")
        return answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise silent(settings, error) from error
